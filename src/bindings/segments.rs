//! Bindings of the `segments` room.

use pyo3::prelude::*;

/// Registers the functions and classes of this room.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
