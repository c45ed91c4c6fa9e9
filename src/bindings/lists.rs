//! Bindings of `rows::lists` and of the products with lists.

use pyo3::prelude::*;

use super::arrays::{Borrowed, Place, by_statistic, vector};
use super::rows::{PyRows, check_threads, statistics};
use crate::array::{ArgumentError, Array, Dtype};
use crate::lists::{self, Matrix};
use crate::rows::lists::{Lists as Found, PerRow, Sampling, lists as list_rows};

/// What `rows_lists` has found, until it is written into tensors of its length.
#[pyclass(frozen)]
pub struct Lists(Found);

#[pymethods]
impl Lists {
    fn __len__(&self) -> usize {
        self.0.classes.len()
    }

    /// Writes the length of each row's list, the classes, and the values.
    fn write(
        &self,
        lengths: Borrowed<'_>,
        classes: Borrowed<'_>,
        values: Borrowed<'_>,
    ) -> PyResult<()> {
        let values = vector("values", &values)?;
        if values.len() != self.0.values.len() || !values.dtype.is_float() {
            return Err(ArgumentError::Value(format!(
                "values: {} of dtype {}, expected {} floats",
                values.len(),
                values.dtype.name(),
                self.0.values.len()
            ))
            .into());
        }
        values.write(&self.0.values);
        for (name, target, source) in [
            ("lengths", &lengths, &self.0.lengths),
            ("classes", &classes, &self.0.classes),
        ] {
            // SAFETY: the Python half has made the tensor for this.
            let slice = unsafe { vector(name, target)?.as_mut_integers() };
            match slice.filter(|slice| slice.len() == source.len()) {
                Some(slice) => slice.copy_from_slice(source),
                None => {
                    return Err(ArgumentError::Value(format!(
                        "{name}: expected {} contiguous i64",
                        source.len()
                    ))
                    .into());
                }
            }
        }
        Ok(())
    }
}

/// Lists the probabilities of every row; with `fresh` its statistics come first, into `table`, which has them otherwise.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn rows_lists(
    py: Python<'_>,
    rows: PyRows<'_>,
    stats: u32,
    k: usize,
    table: Borrowed<'_>,
    fresh: bool,
    numbers: Borrowed<'_>,
    at_label: Borrowed<'_>,
    sampling: (f64, u64, u64),
    threads: usize,
) -> PyResult<Lists> {
    let rows = rows.at(Some(Place::Cpu))?;
    let stats = statistics(stats)?;
    check_threads(threads)?;
    let table = by_statistic("table", table.cpu("table")?)?;
    let at_label = by_statistic("at_label", at_label.cpu("at_label")?)?;
    let per_row = PerRow {
        numbers: numbers.cpu("numbers")?,
        at_label: &at_label,
    };
    let (eps, seed, step) = sampling;
    let sampling = Sampling { eps, seed, step };
    // SAFETY: the arguments keep the memory alive during the call; `table` and `at_label` are the Python half's own.
    let found = py.detach(|| unsafe {
        list_rows(
            &rows,
            (&stats, k),
            (&table, fresh),
            &per_row,
            sampling,
            threads,
        )
    })?;
    Ok(Lists(found))
}

/// A matrix as lists: offsets, classes, values, rest, at_label, labels, number of columns.
#[derive(FromPyObject)]
pub(super) struct PyMatrix<'py>(
    Borrowed<'py>,
    Borrowed<'py>,
    Borrowed<'py>,
    Borrowed<'py>,
    Borrowed<'py>,
    Borrowed<'py>,
    usize,
);

impl PyMatrix<'_> {
    fn get(&self) -> Result<Matrix<'_>, ArgumentError> {
        let PyMatrix(offsets, classes, values, rest, at_label, labels, width) = self;
        Ok(Matrix {
            offsets: integers("offsets", offsets)?,
            classes: integers("classes", classes)?,
            values: vector("values", values)?,
            rest: vector("rest", rest)?,
            at_label: vector("at_label", at_label)?,
            labels: integers("labels", labels)?,
            width: *width,
        })
    }
}

fn integers<'a>(name: &str, given: &'a Borrowed<'_>) -> Result<&'a [i64], ArgumentError> {
    let array = vector(name, given)?;
    array.as_integers().ok_or_else(|| {
        ArgumentError::Value(format!(
            "{name}: dtype {} with strides {:?}, expected contiguous {}",
            array.dtype.name(),
            array.strides,
            Dtype::I64.name()
        ))
    })
}

/// Writes the product of a matrix of lists [M, V] and `weight` [V, H] into `out`.
#[pyfunction]
pub fn lists_by_row(
    py: Python<'_>,
    matrix: PyMatrix<'_>,
    weight: Borrowed<'_>,
    out: Borrowed<'_>,
    threads: usize,
) -> PyResult<()> {
    let matrix = matrix.get()?;
    check_threads(threads)?;
    let (weight, out) = (weight.cpu("weight")?, out.cpu("out")?);
    // SAFETY: the arguments keep the memory alive during the call; `out` is the Python half's own.
    py.detach(|| unsafe { lists::by_row(&matrix, weight, out, threads) })?;
    Ok(())
}

/// Writes the product of its transpose and `inputs` [M, H] into `out` [V, H], and the sums of its columns into `sums`.
#[pyfunction]
pub fn lists_by_class(
    py: Python<'_>,
    matrix: PyMatrix<'_>,
    inputs: Borrowed<'_>,
    out: Borrowed<'_>,
    sums: Option<Borrowed<'_>>,
    threads: usize,
) -> PyResult<()> {
    let matrix = matrix.get()?;
    check_threads(threads)?;
    let (inputs, out) = (inputs.cpu("inputs")?, out.cpu("out")?);
    let sums: Option<&Array> = match &sums {
        Some(sums) => Some(vector("sums", sums)?),
        None => None,
    };
    // SAFETY: as in `lists_by_row`.
    py.detach(|| unsafe { lists::by_class(&matrix, inputs, out, sums, threads) })?;
    Ok(())
}
