//! Whole files, written by the small writers in [`fixture`].

mod fixture;
mod gguf_cases;
mod llama2c_cases;
mod published;
