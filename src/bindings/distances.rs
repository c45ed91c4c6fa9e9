//! Bindings of the `distances` room.

use pyo3::prelude::*;

use super::rows::{PyView, check_threads, view};
use crate::distances::{Samples, cpu};
use crate::view::ArgumentError;

pub(super) fn samples(first: PyView, second: PyView) -> Result<Samples, ArgumentError> {
    Samples::new(view("first", first)?, view("second", second)?)
}

/// Writes ‖first − second‖² of each sample, a row of a matrix, into `out`.
///
/// Views must describe memory that stays alive and unchanged for the call.
#[pyfunction]
pub fn distance_forward(
    py: Python<'_>,
    first: PyView,
    second: PyView,
    out: PyView,
    threads: usize,
) -> PyResult<()> {
    let (samples, out) = (samples(first, second)?, view("out", out)?);
    check_threads(threads)?;
    // SAFETY: the Python half derives the views from tensors that it keeps alive during the call, `out` being its own.
    py.detach(|| unsafe { cpu::forward(&samples, &out, threads) })?;
    Ok(())
}

/// Writes 2·grads·(first − second) into `gradient`.
///
/// Views must describe memory that stays alive and unchanged for the call.
#[pyfunction]
pub fn distance_backward(
    py: Python<'_>,
    first: PyView,
    second: PyView,
    grads: PyView,
    gradient: PyView,
    threads: usize,
) -> PyResult<()> {
    let samples = samples(first, second)?;
    let (grads, gradient) = (view("grads", grads)?, view("gradient", gradient)?);
    check_threads(threads)?;
    // SAFETY: as in `distance_forward`, `gradient` being the Python half's own.
    py.detach(|| unsafe { cpu::backward(&samples, &grads, &gradient, threads) })?;
    Ok(())
}
