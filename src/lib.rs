//! The native half of `prefuse`: the rooms, and (with the `python` feature) their registration as an extension module.

#[cfg(feature = "python")]
mod bindings;
pub mod cuda;
pub mod curate;
pub mod distances;
pub mod objective;
mod outputs;
pub mod rows;
pub mod segments;
pub mod simd;
pub mod threads;
pub mod view;

#[cfg(feature = "python")]
mod module {
    use pyo3::prelude::*;

    #[pymodule]
    fn _prefuse(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        crate::bindings::register(module)
    }
}
