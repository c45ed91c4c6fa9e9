//! What Python sees: arguments checked, buffers borrowed, the GIL released, errors mapped; no arithmetic.

mod arrays;
mod codegen;
mod cuda;
mod curate;
mod distances;
mod dlpack;
mod objective;
mod rows;
mod segments;

use pyo3::prelude::*;

/// Registers every function and class of the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    rows::register(module)?;
    segments::register(module)?;
    distances::register(module)?;
    objective::register(module)?;
    curate::register(module)?;
    cuda::register(module)
}
