//! Bindings of the `rows` room.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::rows::{Rows, Stat, Temperature, backward, both, cpu};
use crate::simd::Level;
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

pub(super) fn check_threads(threads: usize) -> Result<(), ArgumentError> {
    if threads == 0 {
        return Err(ArgumentError::Value(
            "threads: 0, expected at least 1".into(),
        ));
    }
    Ok(())
}

/// The rows of a call, as `Rows.arguments` makes them in Python: logits, labels, mask, reference, temperature, scale, softcap,
/// ignore_index, first_class, classes.
#[derive(FromPyObject)]
pub(super) struct PyRows(
    PyView,
    PyView,
    Option<PyView>,
    Option<PyView>,
    PyTemperature,
    f64,
    f64,
    i64,
    i64,
    i64,
);

impl TryFrom<PyRows> for Rows {
    type Error = ArgumentError;

    fn try_from(rows: PyRows) -> Result<Rows, ArgumentError> {
        let PyRows(logits, labels, mask, reference, temperature, ..) = rows;
        let PyRows(.., scale, softcap, ignore_index, first_class, classes) = rows;
        let optional =
            |argument, given: Option<PyView>| given.map(|given| view(argument, given)).transpose();
        Ok(Rows {
            logits: view("logits", logits)?,
            labels: view("labels", labels)?,
            mask: optional("mask", mask)?,
            reference: optional("reference", reference)?,
            temperature: match temperature {
                PyTemperature::Same(value) => Temperature::Same(value),
                PyTemperature::PerRow(per_row) => {
                    Temperature::PerRow(view("temperature", per_row)?)
                }
            },
            scale,
            softcap,
            ignore_index,
            first_class,
            classes,
        })
    }
}

/// Writes the statistics `stats` of every row into `out`, shape `[len(stats), rows]`.
///
/// Views must describe memory that stays alive and unchanged for the call.
#[pyfunction]
pub fn rows_forward(
    py: Python<'_>,
    rows: PyRows,
    stats: Vec<String>,
    k: usize,
    out: PyView,
    threads: usize,
) -> PyResult<()> {
    let rows = Rows::try_from(rows)?;
    let stats = statistics(&stats)?;
    check_threads(threads)?;
    let out = view("out", out)?;
    // SAFETY: the Python half derives the views from arrays that it keeps alive during the call, `out` being writable.
    py.detach(|| unsafe { cpu::forward(&rows, &stats, k, &out, threads) })?;
    Ok(())
}

/// Writes d(Σ grads·stats)/dlogits into `gradient`, which may be the memory of the logits itself.
///
/// Views must describe memory that stays alive and unchanged for the call.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn rows_backward(
    py: Python<'_>,
    rows: PyRows,
    stats: Vec<String>,
    grads: PyView,
    saved: PyView,
    gradient: PyView,
    threads: usize,
) -> PyResult<()> {
    let rows = Rows::try_from(rows)?;
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

/// `rows_forward` into `out` and `rows_backward` with these values into `gradient`, in one visit to the logits.
///
/// Views must describe memory that stays alive and unchanged for the call.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn rows_both(
    py: Python<'_>,
    rows: PyRows,
    stats: Vec<String>,
    k: usize,
    grads: PyView,
    out: PyView,
    gradient: PyView,
    threads: usize,
) -> PyResult<()> {
    let rows = Rows::try_from(rows)?;
    let stats = statistics(&stats)?;
    check_threads(threads)?;
    let (grads, out, gradient) = (
        view("grads", grads)?,
        view("out", out)?,
        view("gradient", gradient)?,
    );
    // SAFETY: as in `rows_forward`, `gradient` being writable.
    py.detach(|| unsafe { both::both(&rows, (&stats, k), &grads, &out, &gradient, threads) })?;
    Ok(())
}

/// The instruction set that the row kernels use on this machine: "avx512", "avx2", "neon" or "portable".
#[pyfunction]
pub fn simd_level() -> PyResult<&'static str> {
    Ok(Level::current()?.name())
}
