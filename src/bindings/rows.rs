//! Bindings of the `rows` room.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::rows::simd::Level;
use crate::rows::{Rows, Stat, Temperature, backward, cpu};
use crate::view::{ArgumentError, View};

/// `(address of element 0, dtype, shape, strides in elements)`.
pub(super) type PyView = (usize, String, Vec<usize>, Vec<isize>);

#[derive(FromPyObject)]
pub(super) enum PyTemperature {
    #[pyo3(transparent)]
    Same(f64),
    #[pyo3(transparent)]
    PerRow(PyView),
}

impl From<ArgumentError> for PyErr {
    fn from(error: ArgumentError) -> PyErr {
        match error {
            ArgumentError::Value(message) => PyValueError::new_err(message),
            ArgumentError::Type(message) => PyTypeError::new_err(message),
        }
    }
}

pub(super) fn view(
    argument: &str,
    (address, dtype, shape, strides): PyView,
) -> Result<View, ArgumentError> {
    View::new(argument, address, &dtype, shape, strides)
}

pub(super) fn statistics(names: &[String]) -> Result<Vec<Stat>, ArgumentError> {
    names.iter().map(|name| Stat::from_name(name)).collect()
}

fn check_threads(threads: usize) -> Result<(), ArgumentError> {
    if threads == 0 {
        return Err(ArgumentError::Value(
            "threads: 0, expected at least 1".into(),
        ));
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)] // The arguments of a call from Python, grouped here and nowhere else.
pub(super) fn rows(
    logits: PyView,
    labels: PyView,
    mask: Option<PyView>,
    reference: Option<PyView>,
    temperature: PyTemperature,
    scale: f64,
    softcap: f64,
    ignore_index: i64,
) -> Result<Rows, ArgumentError> {
    Ok(Rows {
        logits: view("logits", logits)?,
        labels: view("labels", labels)?,
        mask: mask.map(|mask| view("mask", mask)).transpose()?,
        reference: reference
            .map(|reference| view("reference", reference))
            .transpose()?,
        temperature: match temperature {
            PyTemperature::Same(value) => Temperature::Same(value),
            PyTemperature::PerRow(per_row) => Temperature::PerRow(view("temperature", per_row)?),
        },
        scale,
        softcap,
        ignore_index,
    })
}

/// Writes the statistics `stats` of every row of `logits` into `out`, shape `[len(stats), rows]`.
///
/// Views must describe memory that stays alive and unchanged for the call.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn rows_forward(
    py: Python<'_>,
    logits: PyView,
    labels: PyView,
    mask: Option<PyView>,
    reference: Option<PyView>,
    temperature: PyTemperature,
    scale: f64,
    softcap: f64,
    ignore_index: i64,
    stats: Vec<String>,
    k: usize,
    out: PyView,
    threads: usize,
) -> PyResult<()> {
    let rows = rows(
        logits,
        labels,
        mask,
        reference,
        temperature,
        scale,
        softcap,
        ignore_index,
    )?;
    let stats = statistics(&stats)?;
    check_threads(threads)?;
    let out = view("out", out)?;
    // SAFETY: the Python half derives the views from arrays that it keeps alive during the call, `out` being writable.
    py.detach(|| unsafe { cpu::forward(&rows, &stats, k, &out, threads) })?;
    Ok(())
}

/// Writes d(Σ grads·stats)/dlogits into `gradient`, which may be the memory of `logits` itself.
///
/// Views must describe memory that stays alive and unchanged for the call.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn rows_backward(
    py: Python<'_>,
    logits: PyView,
    labels: PyView,
    mask: Option<PyView>,
    reference: Option<PyView>,
    temperature: PyTemperature,
    scale: f64,
    softcap: f64,
    ignore_index: i64,
    stats: Vec<String>,
    grads: PyView,
    saved: PyView,
    gradient: PyView,
    threads: usize,
) -> PyResult<()> {
    let rows = rows(
        logits,
        labels,
        mask,
        reference,
        temperature,
        scale,
        softcap,
        ignore_index,
    )?;
    let stats = statistics(&stats)?;
    check_threads(threads)?;
    let (grads, saved, gradient) = (
        view("grads", grads)?,
        view("saved", saved)?,
        view("gradient", gradient)?,
    );
    // SAFETY: as in `rows_forward`, `gradient` being writable.
    py.detach(|| unsafe { backward::backward(&rows, &stats, &grads, &saved, &gradient, threads) })?;
    Ok(())
}

/// The instruction set that the row kernels use on this machine: "avx512", "avx2", "neon" or "portable".
#[pyfunction]
fn simd_level() -> PyResult<&'static str> {
    Ok(Level::current()?.name())
}

/// Registers the functions and classes of this room.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(rows_forward, module)?)?;
    module.add_function(wrap_pyfunction!(rows_backward, module)?)?;
    module.add_function(wrap_pyfunction!(simd_level, module)?)?;
    Ok(())
}
