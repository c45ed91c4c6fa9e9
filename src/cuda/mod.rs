//! CUDA: finding the driver and NVRTC, compiling the sources in `kernels/`, keeping what was compiled, launching it.
//!
//! The one module that names cudarc. It knows nothing of rows or objectives: other modules describe a [`Launch`] and it runs it.
//! Memory and streams are PyTorch's and come in as integers. Nothing is touched before the first call.
//!
//! - `source`   kernel sources; a launch as data
//! - `nvrtc`    CUDA C++ to machine code
//! - `cache`    machine code on disk
//! - `once`     values made once per key
//! - `driver`   devices, contexts, modules, launches

pub mod cache;
pub mod driver;
pub mod nvrtc;
mod once;
pub mod source;

use std::fmt;

pub use driver::{Device, launch};
pub use source::{Argument, Launch, Program, Source, THREADS};

/// What went wrong, in a sentence that says what to do where something can be done.
#[derive(Debug)]
pub struct CudaError(pub String);

impl fmt::Display for CudaError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for CudaError {}

pub type Result<T> = std::result::Result<T, CudaError>;
