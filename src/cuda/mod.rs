//! CUDA: finding the driver and NVRTC, compiling the sources in `kernels/`, keeping what was compiled, launching it.
//!
//! The one room that names cudarc. It knows nothing of rows or objectives: other rooms describe a [`Launch`] and it runs it.
//! Memory and streams are PyTorch's and come in as integers. Nothing is touched before the first call.

pub mod source;

pub use source::{Argument, Launch, Program, Source, THREADS};
