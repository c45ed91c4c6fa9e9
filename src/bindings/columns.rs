//! Bindings of `columns`: each kernel on a device, and as a launch plan for the emulator.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{Described, Place};
use super::cuda::{described, run, there};
use crate::array::ArgumentError;
use crate::columns::{self, Gathered, Strips, ToInput};
use crate::cuda::Launch;

type Plan<'py> = PyResult<Vec<Bound<'py, PyDict>>>;

/// Strips of rows: logits, factors, lse, labels, rows of a strip.
#[derive(FromPyObject)]
pub(super) struct PyStrips<'py>(
    Described<'py>,
    Described<'py>,
    Described<'py>,
    Described<'py>,
    usize,
);

impl PyStrips<'_> {
    fn at(&self, place: Option<Place>) -> Result<Strips, ArgumentError> {
        let PyStrips(logits, factors, lse, labels, strip_rows) = self;
        Ok(Strips {
            logits: *logits.at(place, "logits")?,
            factors: *factors.at(place, "factors")?,
            lse: *lse.at(place, "lse")?,
            labels: *labels.at(place, "labels")?,
            strip_rows: *strip_rows,
        })
    }
}

/// What gathering reads and writes beside the strips: columns, starts, values, sums.
#[derive(FromPyObject)]
pub(super) struct PyGathered<'py>(
    Described<'py>,
    Described<'py>,
    Described<'py>,
    Described<'py>,
);

impl PyGathered<'_> {
    fn at(&self, place: Option<Place>) -> Result<Gathered, ArgumentError> {
        let PyGathered(columns, starts, values, sums) = self;
        Ok(Gathered {
            columns: *columns.at(place, "columns")?,
            starts: *starts.at(place, "starts")?,
            values: *values.at(place, "values")?,
            sums: *sums.at(place, "sums")?,
        })
    }
}

/// The flags and tails that finding writes.
#[derive(FromPyObject)]
pub(super) struct PyFound<'py>(Described<'py>, Described<'py>);

/// A sum, what is added to its rows, and to which.
#[derive(FromPyObject)]
pub(super) struct PyAdded<'py>(Described<'py>, Described<'py>, Described<'py>);

/// Values, columns, strips, weight, factors, tails, means, what is written; the most rows of a strip.
#[derive(FromPyObject)]
pub(super) struct PyToInput<'py>(
    Described<'py>,
    Described<'py>,
    Described<'py>,
    Described<'py>,
    Described<'py>,
    Described<'py>,
    Described<'py>,
    Described<'py>,
    usize,
);

/// A sum, values, columns, inputs.
#[derive(FromPyObject)]
pub(super) struct PyToWeight<'py>(
    Described<'py>,
    Described<'py>,
    Described<'py>,
    Described<'py>,
);

fn find(
    strips: &PyStrips,
    eps: f64,
    PyFound(active, tails): &PyFound,
    place: Option<Place>,
) -> Result<Vec<Launch>, ArgumentError> {
    let (active, tails) = (active.at(place, "active")?, tails.at(place, "tails")?);
    columns::find(&strips.at(place)?, eps, active, tails)
}

fn gather(
    strips: &PyStrips,
    gathered: &PyGathered,
    place: Option<Place>,
) -> Result<Vec<Launch>, ArgumentError> {
    columns::gather(&strips.at(place)?, &gathered.at(place)?)
}

fn add(
    PyAdded(sum, product, columns): &PyAdded,
    place: Option<Place>,
) -> Result<Vec<Launch>, ArgumentError> {
    columns::add(
        sum.at(place, "sum")?,
        product.at(place, "product")?,
        columns.at(place, "columns")?,
    )
}

fn to_input(call: &PyToInput, place: Option<Place>) -> Result<Vec<Launch>, ArgumentError> {
    let PyToInput(values, columns, strips, weight, factors, tails, means, out, strip_rows) = call;
    columns::to_input(&ToInput {
        values: *values.at(place, "values")?,
        columns: *columns.at(place, "columns")?,
        strips: *strips.at(place, "strips")?,
        weight: *weight.at(place, "weight")?,
        factors: *factors.at(place, "factors")?,
        tails: *tails.at(place, "tails")?,
        means: *means.at(place, "means")?,
        out: *out.at(place, "out")?,
        strip_rows: *strip_rows,
    })
}

fn to_weight(
    PyToWeight(sum, values, columns, inputs): &PyToWeight,
    place: Option<Place>,
) -> Result<Vec<Launch>, ArgumentError> {
    columns::to_weight(
        sum.at(place, "sum")?,
        values.at(place, "values")?,
        columns.at(place, "columns")?,
        inputs.at(place, "inputs")?,
    )
}

/// Queues the search for columns with a probability of at least `eps`; writes (flags, tails of the others).
#[pyfunction]
pub fn cuda_columns_find(
    py: Python<'_>,
    strips: PyStrips<'_>,
    eps: f64,
    found: PyFound<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let launches = find(&strips, eps, &found, Some(there(device)?))?;
    run(py, device, stream, launches)
}

/// Parts of the longest list of a strip, each with sums of its own.
#[pyfunction]
pub fn cuda_columns_parts(longest: usize) -> usize {
    columns::parts(longest)
}

/// Queues the gathering of probabilities; writes values and sums.
#[pyfunction]
pub fn cuda_columns_gather(
    py: Python<'_>,
    strips: PyStrips<'_>,
    gathered: PyGathered<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let launches = gather(&strips, &gathered, Some(there(device)?))?;
    run(py, device, stream, launches)
}

/// Queues the addition of rows to some rows of a sum: (sum, product, columns).
#[pyfunction]
pub fn cuda_columns_add(
    py: Python<'_>,
    added: PyAdded<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let launches = add(&added, Some(there(device)?))?;
    run(py, device, stream, launches)
}

/// Queues what gathered columns and means give the inputs; writes that.
#[pyfunction]
pub fn cuda_columns_to_input(
    py: Python<'_>,
    call: PyToInput<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let launches = to_input(&call, Some(there(device)?))?;
    run(py, device, stream, launches)
}

/// Queues the addition of what a strip's columns give the weight: (sum, values, columns, inputs).
#[pyfunction]
pub fn cuda_columns_to_weight(
    py: Python<'_>,
    call: PyToWeight<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let launches = to_weight(&call, Some(there(device)?))?;
    run(py, device, stream, launches)
}

/// The launches of `cuda_columns_find`.
#[pyfunction]
pub fn cuda_plan_columns_find<'py>(
    py: Python<'py>,
    strips: PyStrips<'_>,
    eps: f64,
    found: PyFound<'_>,
) -> Plan<'py> {
    described(py, find(&strips, eps, &found, None)?)
}

/// The launches of `cuda_columns_gather`.
#[pyfunction]
pub fn cuda_plan_columns_gather<'py>(
    py: Python<'py>,
    strips: PyStrips<'_>,
    gathered: PyGathered<'_>,
) -> Plan<'py> {
    described(py, gather(&strips, &gathered, None)?)
}

/// The launches of `cuda_columns_add`.
#[pyfunction]
pub fn cuda_plan_columns_add<'py>(py: Python<'py>, added: PyAdded<'_>) -> Plan<'py> {
    described(py, add(&added, None)?)
}

/// The launches of `cuda_columns_to_input`.
#[pyfunction]
pub fn cuda_plan_columns_to_input<'py>(py: Python<'py>, call: PyToInput<'_>) -> Plan<'py> {
    described(py, to_input(&call, None)?)
}

/// The launches of `cuda_columns_to_weight`.
#[pyfunction]
pub fn cuda_plan_columns_to_weight<'py>(py: Python<'py>, call: PyToWeight<'_>) -> Plan<'py> {
    described(py, to_weight(&call, None)?)
}
