//! Bindings of the `objective` room.

use pyo3::prelude::*;

/// Registers the functions and classes of this room.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
