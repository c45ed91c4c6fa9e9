//! The native half of `prefuse`: one module per task, and (with the `python` feature) `bindings`, the extension module.

pub mod array;
#[cfg(feature = "python")]
mod bindings;
pub mod columns;
pub mod cuda;
pub mod curate;
pub mod distances;
pub mod lists;
pub mod objective;
mod outputs;
pub mod rows;
pub mod segments;
pub(crate) mod simd;
pub mod storage;
pub mod threads;
