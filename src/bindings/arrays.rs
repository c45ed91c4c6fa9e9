//! One-dimensional `View` tuples, parsed straight into arrays: a program gets a dozen of them per call.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use crate::segments::array::Array;
use crate::view::Dtype;

/// A `(address, dtype, shape, strides)` tuple with at most one dimension.
pub fn array_of(argument: &str, view: &Bound<'_, PyAny>) -> PyResult<Array> {
    let malformed = || {
        PyTypeError::new_err(format!(
            "{argument}: expected a view (address, dtype, shape, strides), got {view}"
        ))
    };
    let parts = view.cast::<PyTuple>().map_err(|_| malformed())?;
    if parts.len() != 4 {
        return Err(malformed());
    }
    let address: usize = parts.get_item(0)?.extract().map_err(|_| malformed())?;
    let name = parts.get_item(1)?;
    let name = name.cast::<PyString>().map_err(|_| malformed())?.to_str()?;
    let dtype = Dtype::from_name(name)
        .ok_or_else(|| PyTypeError::new_err(format!("{argument}: unknown dtype '{name}'")))?;
    let (shape, strides) = (parts.get_item(2)?, parts.get_item(3)?);
    let (shape, strides) = (shape.cast::<PyTuple>(), strides.cast::<PyTuple>());
    let (shape, strides) = (
        shape.map_err(|_| malformed())?,
        strides.map_err(|_| malformed())?,
    );
    let mut dimensions = [0; 1];
    let mut steps = [0; 1];
    let rank = shape.len();
    if rank > 1 || strides.len() != rank {
        return Err(PyValueError::new_err(format!(
            "{argument}: expected at most one dimension, got shape {shape} with strides {strides}"
        )));
    }
    if rank == 1 {
        dimensions[0] = shape.get_item(0)?.extract().map_err(|_| malformed())?;
        steps[0] = strides.get_item(0)?.extract().map_err(|_| malformed())?;
    }
    // SAFETY: the Python half of the package makes views of arrays that it keeps alive during the call.
    let array = unsafe { Array::new(address, dtype, &dimensions[..rank], &steps[..rank]) };
    array.map_err(|problem| PyValueError::new_err(format!("{argument}: {problem}")))
}

/// A sequence of views.
pub fn arrays_of(argument: &str, views: &Bound<'_, PyAny>) -> PyResult<Vec<Array>> {
    views
        .try_iter()?
        .map(|view| array_of(argument, &view?))
        .collect()
}
