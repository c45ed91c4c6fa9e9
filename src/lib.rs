//! The native half of `prefuse`: module registration, nothing else.

mod bindings;
pub mod cuda;
pub mod objective;
pub mod rows;
pub mod segments;
pub mod threads;
pub mod view;

use pyo3::prelude::*;

#[pymodule]
fn _prefuse(module: &Bound<'_, PyModule>) -> PyResult<()> {
    bindings::register(module)
}
