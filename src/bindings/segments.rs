//! Bindings of `segments`.

use std::borrow::Cow;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::arrays::{Borrowed, vector};
use crate::array::{Array, Dtype};
use crate::segments::{Segments, cpu};

/// Writes the sum of each segment of `values` into `out`; 0 for an empty segment. Accumulated in f64.
#[pyfunction]
pub fn segment_sum(
    py: Python<'_>,
    values: Borrowed<'_>,
    offsets: Borrowed<'_>,
    out: Borrowed<'_>,
) -> PyResult<()> {
    let (values, out) = (floats("values", &values)?, floats("out", &out)?);
    let segments = segments_of(vector("offsets", &offsets)?)?;
    must_have("values", values, segments.len(), "the last offset")?;
    must_have("out", out, segments.count(), "the number of segments")?;
    py.detach(|| {
        let mut sums = vec![0.0; segments.count()];
        match values.as_slice::<f32>() {
            Some(slice) => cpu::sum(slice, &segments, &mut sums, 1),
            None => cpu::sum(&in_f64(values), &segments, &mut sums, 1),
        }
        out.write(&sums);
    });
    Ok(())
}

/// Writes each of `values` to all elements of its segment in `out`: the transpose of `segment_sum`.
#[pyfunction]
pub fn segment_expand(
    py: Python<'_>,
    values: Borrowed<'_>,
    offsets: Borrowed<'_>,
    out: Borrowed<'_>,
) -> PyResult<()> {
    let (values, out) = (floats("values", &values)?, floats("out", &out)?);
    let segments = segments_of(vector("offsets", &offsets)?)?;
    must_have("values", values, segments.count(), "the number of segments")?;
    must_have("out", out, segments.len(), "the last offset")?;
    py.detach(|| {
        let mut expanded = vec![0.0; segments.len()];
        cpu::expand(&in_f64(values), &segments, &mut expanded, 1);
        out.write(&expanded);
    });
    Ok(())
}

/// An array of f32 or f64.
fn floats<'a>(argument: &str, given: &'a Borrowed) -> PyResult<&'a Array> {
    let array = vector(argument, given)?;
    match array.dtype {
        Dtype::F32 | Dtype::F64 => Ok(array),
        dtype => Err(PyTypeError::new_err(format!(
            "{argument}: expected dtype f32 or f64, got {}",
            dtype.name()
        ))),
    }
}

fn segments_of(offsets: &Array) -> PyResult<Segments> {
    if offsets.dtype != Dtype::I64 {
        return Err(PyTypeError::new_err(format!(
            "offsets: expected dtype i64, got {}",
            offsets.dtype.name()
        )));
    }
    Segments::from_offsets(offsets.integers())
        .map_err(|problem| PyValueError::new_err(format!("offsets {problem}")))
}

fn must_have(argument: &str, array: &Array, len: usize, what: &str) -> PyResult<()> {
    if array.len() == len && !array.is_scalar() {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "{argument}: expected {len} values ({what}), got {}",
        array.len()
    )))
}

fn in_f64(array: &Array) -> Cow<'_, [f64]> {
    if let Some(slice) = array.as_slice() {
        return Cow::Borrowed(slice);
    }
    let mut copy = vec![0.0; array.len()];
    array.read(&mut copy);
    Cow::Owned(copy)
}
