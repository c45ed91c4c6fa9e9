//! Bindings of `rows::lists` and of the products with lists.

use pyo3::prelude::*;

use super::arrays::{Borrowed, Place, by_statistic, vector};
use super::rows::{PyProduct, PyRows, check_threads, statistics};
use crate::array::{ArgumentError, Array, Dtype};
use crate::lists::{self, Matrix};
use crate::rows::lists::{Lists as Found, PerRow, Sampling, lists as list_rows};
use crate::rows::projected;

/// What `rows_lists` has found, until it is written into tensors of its length.
#[pyclass(frozen)]
pub struct Lists(pub(super) Found);

#[pymethods]
impl Lists {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// Writes the length of each row's list, the classes, and the values.
    fn write(
        &self,
        lengths: Borrowed<'_>,
        classes: Borrowed<'_>,
        values: Borrowed<'_>,
    ) -> PyResult<()> {
        let values = vector("values", &values)?;
        if values.len() != self.0.len() || !values.dtype.is_float() || !values.is_contiguous() {
            return Err(ArgumentError::Value(format!(
                "values: {} of dtype {}, expected {} contiguous floats",
                values.len(),
                values.dtype.name(),
                self.0.len()
            ))
            .into());
        }
        let (to_lengths, to_classes) = (vector("lengths", &lengths)?, vector("classes", &classes)?);
        // SAFETY: the Python half has made the tensors for this.
        let (lengths, classes) =
            unsafe { (to_lengths.as_mut_integers(), to_classes.as_mut_integers()) };
        let lengths = of_length("lengths", lengths, self.0.lengths.len())?;
        let classes = of_length("classes", classes, self.0.len())?;
        lengths.copy_from_slice(&self.0.lengths);
        let mut start = 0;
        for list in &self.0.lists {
            let end = start + list.classes.len();
            classes[start..end].copy_from_slice(&list.classes);
            let address = values.address + start * values.dtype.size();
            // SAFETY: a part of the tensor's memory.
            let part = unsafe { Array::new(address, values.dtype, &[list.values.len()], &[1]) };
            let part = part.map_err(ArgumentError::Value)?;
            part.write(&list.values);
            start = end;
        }
        Ok(())
    }
}

/// A slice of so many, if it is one.
fn of_length<'a>(
    name: &str,
    slice: Option<&'a mut [i64]>,
    len: usize,
) -> Result<&'a mut [i64], ArgumentError> {
    slice
        .filter(|slice| slice.len() == len)
        .ok_or_else(|| ArgumentError::Value(format!("{name}: expected {len} contiguous i64")))
}

/// What a call is lent beside its rows: a table of statistics, and the `PerRow` of the lists.
#[derive(FromPyObject)]
pub(super) struct PyLent<'py>(Borrowed<'py>, Borrowed<'py>, Borrowed<'py>);

struct Lent {
    table: Array,
    numbers: Array,
    at_label: Array,
}

impl PyLent<'_> {
    fn get(&self) -> Result<Lent, ArgumentError> {
        let PyLent(table, numbers, at_label) = self;
        Ok(Lent {
            table: by_statistic("table", table.cpu("table")?)?,
            numbers: *numbers.cpu("numbers")?,
            at_label: by_statistic("at_label", at_label.cpu("at_label")?)?,
        })
    }
}

impl Lent {
    fn per_row(&self) -> PerRow<'_> {
        PerRow {
            numbers: &self.numbers,
            at_label: &self.at_label,
        }
    }
}

fn sampled((eps, seed, step): (f64, u64, u64)) -> Sampling {
    Sampling { eps, seed, step }
}

/// Lists the probabilities of every row; with `fresh` its statistics come first, into `table`, which has them otherwise.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn rows_lists(
    py: Python<'_>,
    rows: PyRows<'_>,
    stats: u32,
    k: usize,
    lent: PyLent<'_>,
    fresh: bool,
    sampling: (f64, u64, u64),
    threads: usize,
) -> PyResult<Lists> {
    let rows = rows.at(Some(Place::Cpu))?;
    let stats = statistics(stats)?;
    check_threads(threads)?;
    let lent = lent.get()?;
    let sampling = sampled(sampling);
    // SAFETY: the arguments keep the memory alive during the call; `table` and `at_label` are the Python half's own.
    let found = py.detach(|| unsafe {
        list_rows(
            &rows,
            (&stats, k),
            (&lent.table, fresh),
            &lent.per_row(),
            sampling,
            threads,
        )
    })?;
    Ok(Lists(found))
}

/// `rows_lists` of rows whose logits, a shape, are `hidden @ weight.T + bias`; their statistics go into `table`.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn projected_lists(
    py: Python<'_>,
    rows: PyRows<'_>,
    stats: u32,
    product: PyProduct<'_>,
    lent: PyLent<'_>,
    sampling: (f64, u64, u64),
    threads: usize,
) -> PyResult<Lists> {
    let rows = rows.unmade(Some(Place::Cpu))?;
    let stats = statistics(stats)?;
    check_threads(threads)?;
    let lent = lent.get()?;
    let sampling = sampled(sampling);
    let product = product.get()?;
    // SAFETY: as in `rows_lists`.
    let found = py.detach(|| unsafe {
        projected::lists(
            &rows,
            &stats,
            &product,
            &lent.table,
            &lent.per_row(),
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

/// A vector, if there is one.
fn given<'a>(
    name: &str,
    vector_or_none: &'a Option<Borrowed<'_>>,
) -> Result<Option<&'a Array>, ArgumentError> {
    vector_or_none
        .as_ref()
        .map(|given| vector(name, given))
        .transpose()
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

/// Writes the product of its transpose and `inputs` [M, H], and `base` [H] besides, into the rows of `out` [V, H], and the
/// sums of its columns into `sums`.
#[pyfunction]
pub fn lists_by_class(
    py: Python<'_>,
    matrix: PyMatrix<'_>,
    inputs: Borrowed<'_>,
    base: Option<Borrowed<'_>>,
    out: Borrowed<'_>,
    sums: Option<Borrowed<'_>>,
    threads: usize,
) -> PyResult<()> {
    let matrix = matrix.get()?;
    check_threads(threads)?;
    let (inputs, out) = (inputs.cpu("inputs")?, out.cpu("out")?);
    let (base, sums) = (given("base", &base)?, given("sums", &sums)?);
    // SAFETY: as in `lists_by_row`.
    py.detach(|| unsafe { lists::by_class(&matrix, inputs, base, (out, sums), threads) })?;
    Ok(())
}
