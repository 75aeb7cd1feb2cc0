//! Compiles the C++ shim against libtorch's headers.

#![allow(clippy::print_stdout, reason = "cargo reads a build script's standard output")]

use std::path::PathBuf;

const SOURCES: [&str; 6] =
    ["tensor.cpp", "device.cpp", "allocator.cpp", "store.cpp", "gloo.cpp", "paged.cpp"];
const HEADERS: [&str; 4] = ["shim.h", "store.h", "paged_kernel.h", "paged_kernel.cpp"];

/// Instruction sets that the attention kernel is compiled for; `paged.cpp` picks one at run time.
const KERNELS: [(&str, &[&str]); 3] = [
    ("base", &[]),
    ("avx2", &["-mavx2", "-mfma"]),
    ("avx512", &["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]),
];

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    let folder = |name: &str| std::env::var(name).or_else(|_| std::env::var("LIBTORCH"));
    let missing = |_| "LIBTORCH names no libtorch 2.11: run `make setup` first".to_owned();
    let headers = PathBuf::from(folder("LIBTORCH_INCLUDE").map_err(missing)?).join("include");
    let libraries = PathBuf::from(folder("LIBTORCH_LIB").map_err(missing)?).join("lib");
    if !headers.join("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp").is_file() {
        return Err(format!(
            "no libtorch 2.11 headers in {}: run `make setup` first",
            headers.display()
        ));
    }

    let shim = PathBuf::from("shim");
    for file in SOURCES.iter().chain(&HEADERS).chain(&["gloo_stubs"]) {
        println!("cargo:rerun-if-changed={}", shim.join(file).display());
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // Level 1: the shim only forwards; this keeps a cold build short.
        .opt_level(1)
        .warnings(false)
        .flag("-Wall")
        // For at::parallel_for, which is inline.
        .flag("-fopenmp")
        .include(&shim);
    // libtorch's headers are not ours to keep free of warnings.
    for system in [shim.join("gloo_stubs"), headers.clone(), headers.join("torch/csrc/api/include")]
    {
        build.flag("-isystem").flag(system);
    }
    build.files(SOURCES.iter().map(|file| shim.join(file))).compile("plumb_torch_shim");

    let x86_64 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    for (name, flags) in KERNELS.iter().filter(|(name, _)| x86_64 || *name == "base") {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(3).warnings(false).flag("-Wall").flag("-Wno-psabi");
        flags.iter().for_each(|flag| {
            build.flag(flag);
        });
        build.define("PLUMB_ISA", *name).include(&shim).file(shim.join("paged_kernel.cpp"));
        build.compile(&format!("plumb_paged_{name}"));
    }

    println!("cargo:rustc-link-lib=gomp");
    println!("cargo:rustc-link-search=native={}", libraries.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", libraries.display());
    Ok(())
}
