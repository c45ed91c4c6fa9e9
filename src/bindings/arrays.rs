//! One-dimensional arrays from Python, as `View` tuples or DLPack capsules: a program gets a dozen of them per call.

use std::fmt::Display;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyList, PyString, PyTuple};

use super::dlpack::array_in;
use crate::segments::array::Array;
use crate::view::Dtype;

/// An array of at most one dimension: a DLPack capsule, or a `(address, dtype, shape, strides)` tuple.
pub fn array_of(argument: impl Display, view: &Bound<'_, PyAny>) -> PyResult<Array> {
    if let Ok(capsule) = view.cast::<PyCapsule>() {
        return array_in(capsule)
            .map_err(|problem| PyValueError::new_err(format!("{argument}: {problem}")));
    }
    let Some((address, dtype, dimension)) = parts_of(view)? else {
        return Err(PyTypeError::new_err(format!(
            "{argument}: expected a view (address, dtype, shape, strides) of at most one dimension, got {view}"
        )));
    };
    let dtype = Dtype::from_name(dtype.to_str()?)
        .ok_or_else(|| PyTypeError::new_err(format!("{argument}: unknown dtype '{dtype}'")))?;
    let array = match dimension {
        // SAFETY: the Python half of the package makes views of arrays that it keeps alive during the call.
        None => unsafe { Array::new(address, dtype, &[], &[]) },
        // SAFETY: as above.
        Some((len, stride)) => unsafe { Array::new(address, dtype, &[len], &[stride]) },
    };
    array.map_err(|problem| PyValueError::new_err(format!("{argument}: {problem}")))
}

type Parts<'py> = (usize, Bound<'py, PyString>, Option<(usize, isize)>);

/// The address, the dtype's name, and length and stride, if the view is one of at most one dimension.
fn parts_of<'py>(view: &Bound<'py, PyAny>) -> PyResult<Option<Parts<'py>>> {
    let Ok(parts) = view.cast::<PyTuple>() else {
        return Ok(None);
    };
    if parts.len() != 4 {
        return Ok(None);
    }
    let address = parts.get_borrowed_item(0)?.extract();
    let dtype = parts.get_item(1)?.cast_into::<PyString>();
    let (shape, strides) = (parts.get_borrowed_item(2)?, parts.get_borrowed_item(3)?);
    let (shape, strides) = (shape.cast::<PyTuple>(), strides.cast::<PyTuple>());
    let (Ok(address), Ok(dtype), Ok(shape), Ok(strides)) = (address, dtype, shape, strides) else {
        return Ok(None);
    };
    match (shape.len(), strides.len()) {
        (0, 0) => Ok(Some((address, dtype, None))),
        (1, 1) => {
            let len = shape.get_borrowed_item(0)?.extract();
            let stride = strides.get_borrowed_item(0)?.extract();
            let (Ok(len), Ok(stride)) = (len, stride) else {
                return Ok(None);
            };
            Ok(Some((address, dtype, Some((len, stride)))))
        }
        _ => Ok(None),
    }
}

/// A list of views; an error names the position.
pub fn arrays_of(argument: &str, views: &Bound<'_, PyList>) -> PyResult<Vec<Array>> {
    views
        .iter()
        .enumerate()
        .map(|(index, view)| array_of(format_args!("{argument}[{index}]"), &view))
        .collect()
}
