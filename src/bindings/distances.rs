//! Bindings of `distances`.

use pyo3::prelude::*;

use super::arrays::Borrowed;
use super::rows::check_threads;
use crate::distances::{Samples, cpu};

/// Writes ‖first − second‖² of each sample, a row of a matrix, into `out`.
#[pyfunction]
pub fn distance_forward(
    py: Python<'_>,
    first: Borrowed<'_>,
    second: Borrowed<'_>,
    out: Borrowed<'_>,
    threads: usize,
) -> PyResult<()> {
    let (samples, out) = (
        Samples::new(*first.cpu("first")?, *second.cpu("second")?)?,
        out.cpu("out")?,
    );
    check_threads(threads)?;
    // SAFETY: the arguments keep the memory alive during the call; `out` is the Python half's own.
    py.detach(|| unsafe { cpu::forward(&samples, out, threads) })?;
    Ok(())
}

/// Writes 2·grads·(first − second) into `gradient`.
#[pyfunction]
pub fn distance_backward(
    py: Python<'_>,
    first: Borrowed<'_>,
    second: Borrowed<'_>,
    grads: Borrowed<'_>,
    gradient: Borrowed<'_>,
    threads: usize,
) -> PyResult<()> {
    let samples = Samples::new(*first.cpu("first")?, *second.cpu("second")?)?;
    let (grads, gradient) = (grads.cpu("grads")?, gradient.cpu("gradient")?);
    check_threads(threads)?;
    // SAFETY: as in `distance_forward`, `gradient` being the Python half's own.
    py.detach(|| unsafe { cpu::backward(&samples, grads, gradient, threads) })?;
    Ok(())
}
