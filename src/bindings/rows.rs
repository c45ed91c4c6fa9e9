//! Bindings of `rows`.

use pyo3::prelude::*;

use super::arrays::{Borrowed, Described, Place, by_statistic, number};
use crate::array::{ArgumentError, Array};
use crate::outputs::prefer_huge;
use crate::rows::projected::{self, Product};
use crate::rows::{Rows, Stat, Temperature, backward, both, cpu};
use crate::simd::Level;

#[derive(FromPyObject)]
pub(super) enum PyTemperature<'py> {
    #[pyo3(transparent)]
    Same(#[pyo3(from_py_with = number)] f64),
    #[pyo3(transparent)]
    PerRow(Described<'py>),
}

/// A set of statistics: bit i is statistic i.
pub(super) fn statistics(bits: u32) -> Result<Vec<Stat>, ArgumentError> {
    Stat::of_bits(bits)
}

/// The names of the statistics, by their bits.
#[pyfunction]
pub fn statistic_names() -> Vec<&'static str> {
    Stat::ALL.map(Stat::name).to_vec()
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
pub(super) struct PyRows<'py>(
    Described<'py>,
    Described<'py>,
    Option<Described<'py>>,
    Option<Described<'py>>,
    PyTemperature<'py>,
    f64,
    f64,
    i64,
    i64,
    i64,
);

impl PyRows<'_> {
    /// The rows, whose arrays must be memory of this place, if one is given.
    pub(super) fn at(&self, place: Option<Place>) -> Result<Rows, ArgumentError> {
        self.with(*self.0.at(place, "logits")?, place)
    }

    /// The same, of logits that need not exist.
    pub(super) fn unmade(&self, place: Option<Place>) -> Result<Rows, ArgumentError> {
        self.with(*self.0.shape(), place)
    }

    fn with(&self, logits: Array, place: Option<Place>) -> Result<Rows, ArgumentError> {
        let PyRows(_, labels, mask, reference, temperature, ..) = self;
        let &PyRows(.., scale, softcap, ignore_index, first_class, classes) = self;
        let optional = |argument, given: &Option<Described>| {
            given
                .as_ref()
                .map(|given| given.at(place, argument).copied())
                .transpose()
        };
        Ok(Rows {
            logits,
            labels: *labels.at(place, "labels")?,
            mask: optional("mask", mask)?,
            reference: optional("reference", reference)?,
            temperature: match temperature {
                PyTemperature::Same(value) => Temperature::Same(*value),
                PyTemperature::PerRow(each) => Temperature::PerRow(*each.at(place, "temperature")?),
            },
            scale,
            softcap,
            ignore_index,
            first_class,
            classes,
        })
    }
}

/// Writes the statistics of every row into `out`, shape `[S, rows]`, those of lower bits of `stats` first.
#[pyfunction]
pub fn rows_forward(
    py: Python<'_>,
    rows: PyRows<'_>,
    stats: u32,
    k: usize,
    out: Borrowed<'_>,
    threads: usize,
) -> PyResult<()> {
    let rows = rows.at(Some(Place::Cpu))?;
    let stats = statistics(stats)?;
    check_threads(threads)?;
    let out = by_statistic("out", out.cpu("out")?)?;
    // SAFETY: the arguments keep the memory alive during the call; the Python half gives an `out` that may be written.
    py.detach(|| unsafe { cpu::forward(&rows, &stats, k, &out, threads) })?;
    Ok(())
}

/// Hidden states, weight, bias.
#[derive(FromPyObject)]
pub(super) struct PyProduct<'py>(Borrowed<'py>, Borrowed<'py>, Option<Borrowed<'py>>);

impl PyProduct<'_> {
    pub(super) fn get(&self) -> Result<Product<'_>, ArgumentError> {
        let PyProduct(hidden, weight, bias) = self;
        Ok(Product {
            hidden: hidden.cpu("hidden")?,
            weight: weight.cpu("weight")?,
            bias: bias.as_ref().map(|bias| bias.cpu("bias")).transpose()?,
        })
    }
}

/// Writes the statistics of rows whose logits, a shape, are `hidden @ weight.T + bias`, as `rows_forward` does.
#[pyfunction]
pub fn rows_projected(
    py: Python<'_>,
    rows: PyRows<'_>,
    stats: u32,
    product: PyProduct<'_>,
    out: Borrowed<'_>,
    threads: usize,
) -> PyResult<()> {
    let rows = rows.unmade(Some(Place::Cpu))?;
    let stats = statistics(stats)?;
    check_threads(threads)?;
    let out = by_statistic("out", out.cpu("out")?)?;
    let product = product.get()?;
    // SAFETY: as in `rows_forward`.
    py.detach(|| unsafe { projected::forward(&rows, &stats, &product, &out, threads) })?;
    Ok(())
}

/// Whether `rows_projected` runs on this machine.
#[pyfunction]
pub fn projects_rows() -> bool {
    projected::available()
}

/// Writes d(Σ grads·stats)/dlogits into `gradient`, which may be the memory of the logits itself.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn rows_backward(
    py: Python<'_>,
    rows: PyRows<'_>,
    stats: u32,
    grads: Borrowed<'_>,
    saved: Borrowed<'_>,
    gradient: Borrowed<'_>,
    threads: usize,
) -> PyResult<()> {
    let rows = rows.at(Some(Place::Cpu))?;
    let stats = statistics(stats)?;
    check_threads(threads)?;
    let (grads, saved, gradient) = (
        by_statistic("grads", grads.cpu("grads")?)?,
        by_statistic("saved", saved.cpu("saved")?)?,
        gradient.cpu("gradient")?,
    );
    // SAFETY: as in `rows_forward`, `gradient` being writable.
    py.detach(|| unsafe { backward::backward(&rows, &stats, &grads, &saved, gradient, threads) })?;
    Ok(())
}

/// `rows_forward` into `out` and `rows_backward` with these values into `gradient`, in one visit to the logits.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn rows_both(
    py: Python<'_>,
    rows: PyRows<'_>,
    stats: u32,
    k: usize,
    grads: Borrowed<'_>,
    out: Borrowed<'_>,
    gradient: Borrowed<'_>,
    threads: usize,
) -> PyResult<()> {
    let rows = rows.at(Some(Place::Cpu))?;
    let stats = statistics(stats)?;
    check_threads(threads)?;
    let (grads, out, gradient) = (
        by_statistic("grads", grads.cpu("grads")?)?,
        by_statistic("out", out.cpu("out")?)?,
        gradient.cpu("gradient")?,
    );
    // SAFETY: as in `rows_forward`, `gradient` being writable.
    py.detach(|| unsafe { both::both(&rows, (&stats, k), &grads, &out, gradient, threads) })?;
    Ok(())
}

/// Asks the system to back an array that nobody has written to yet by huge pages: advice about speed.
#[pyfunction]
pub fn prefer_huge_pages(array: Borrowed<'_>) -> PyResult<()> {
    prefer_huge(array.cpu("array")?);
    Ok(())
}

/// The instruction set that the row kernels use on this machine: "avx512", "avx2", "neon" or "portable".
#[pyfunction]
pub fn simd_level() -> PyResult<&'static str> {
    Ok(Level::current()?.name())
}
