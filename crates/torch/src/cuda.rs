//! CUDA at run time, from a binary that does not need it to start.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::TorchError;

const LIBRARY: &str = "libtorch_cuda.so";

/// Adds libtorch's CUDA half to this process. A process that will use a CUDA device calls this
/// first thing in `main`, before any other libtorch call: kernels register themselves on loading.
///
/// The library is found by the loader's search path, so on a GPU machine `LD_LIBRARY_PATH` names
/// that machine's `torch/lib` (of the same libtorch version). It stays loaded for good.
///
/// # Errors
/// When the library or one that it needs is not found.
pub fn load() -> Result<(), TorchError> {
    // SAFETY: libtorch_cuda's initialisers only register kernels and hooks with libtorch_cpu, and
    // the library is never unloaded, so its finalisers run at process exit alone.
    let library = unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| {
        let hint = "set LD_LIBRARY_PATH to the lib folder of a CUDA build of torch 2.11";
        TorchError::new("loading cuda", format!("{LIBRARY}: {error}; {hint}"))
    })?;
    std::mem::forget(library);
    if tch::Cuda::is_available() {
        Ok(())
    } else {
        Err(TorchError::new("loading cuda", format!("{LIBRARY} was loaded but finds no device")))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_missing_library_is_named_with_what_to_do() {
        if tch::Cuda::is_available() {
            println!("skipped: this machine has CUDA");
            return;
        }
        let error = super::load().unwrap_err();
        assert_eq!(error.operation, "loading cuda");
        assert!(error.message.contains("libtorch_cuda.so"), "{error}");
    }
}
