//! The build script of every package whose binaries or tests link libtorch: writes libtorch's
//! folder into them as their run path, so that they start without `LD_LIBRARY_PATH`.
//!
//! torch-sys cannot do this for its dependents: cargo applies `rustc-link-arg` only to the package
//! that prints it. Packages name this file in their manifest (`build = ".../torch/rpath.rs"`).

#![allow(clippy::print_stdout, reason = "cargo reads a build script's standard output")]

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    let root = std::env::var("LIBTORCH_LIB").or_else(|_| std::env::var("LIBTORCH"));
    // Without either, torch-sys uses a system-wide libtorch, which the loader finds by itself.
    if let Ok(root) = root {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{root}/lib");
    }
}
