//! Bindings of `curate`.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::arrays::{Borrowed, vector};
use crate::array::Array;
use crate::curate::{pairs, rank};

/// Writes the elements by group and descending score into `order`, where each group begins into `offsets`.
#[pyfunction]
pub fn curate_rank(
    py: Python<'_>,
    scores: Borrowed<'_>,
    groups: Borrowed<'_>,
    offsets: Borrowed<'_>,
    order: Borrowed<'_>,
    threads: usize,
) -> PyResult<()> {
    let scores = vector("scores", &scores)?;
    let scores = doubles("scores", scores)?;
    let (groups, order) = (vector("groups", &groups)?, vector("order", &order)?);
    let offsets = vector("offsets", &offsets)?;
    let groups = integers("groups", groups, scores.len())?;
    // SAFETY: the Python half passes arrays that it has just made and nobody else knows.
    let (order, offsets) = unsafe {
        (
            integers_out("order", order, scores.len())?,
            integers_out("offsets", offsets, offsets.len())?,
        )
    };
    if offsets.is_empty() {
        return Err(PyValueError::new_err("offsets: expected at least 1 value"));
    }
    py.detach(|| rank::rank(scores, groups, offsets, order, threads))
        .map_err(|index| no_group(groups, index))
}

/// Writes the first place that each place of a ranking beats into `first`; returns the number of pairs.
#[pyfunction]
pub fn curate_first_beaten(
    py: Python<'_>,
    scores: Borrowed<'_>,
    order: Borrowed<'_>,
    offsets: Borrowed<'_>,
    min_gap: f64,
    first: Borrowed<'_>,
) -> PyResult<usize> {
    let (scores, order) = (vector("scores", &scores)?, vector("order", &order)?);
    let (offsets, first) = (vector("offsets", &offsets)?, vector("first", &first)?);
    let scores = doubles("scores", scores)?;
    let (order, offsets) = ranking(order, offsets, scores.len())?;
    // SAFETY: as above.
    let first = unsafe { integers_out("first", first, scores.len())? };
    Ok(py.detach(|| pairs::first_beaten(scores, order, offsets, min_gap, first)))
}

/// Writes the pairs that `curate_first_beaten` counted.
#[pyfunction]
pub fn curate_pairs(
    py: Python<'_>,
    order: Borrowed<'_>,
    offsets: Borrowed<'_>,
    first: Borrowed<'_>,
    chosen: Borrowed<'_>,
    rejected: Borrowed<'_>,
    threads: usize,
) -> PyResult<()> {
    let (order, offsets) = (vector("order", &order)?, vector("offsets", &offsets)?);
    let (first, chosen) = (vector("first", &first)?, vector("chosen", &chosen)?);
    let rejected = vector("rejected", &rejected)?;
    let len = order.len();
    let (order, offsets) = ranking(order, offsets, len)?;
    let first = integers("first", first, len)?;
    let count = pairs_counted(offsets, first)?;
    // SAFETY: as above.
    let (chosen, rejected) = unsafe {
        (
            integers_out("chosen", chosen, count)?,
            integers_out("rejected", rejected, count)?,
        )
    };
    py.detach(|| pairs::write(order, offsets, first, chosen, rejected, threads));
    Ok(())
}

/// Writes the best and the worst element of each group; -1 for an empty one.
#[pyfunction]
pub fn curate_ends(
    py: Python<'_>,
    scores: Borrowed<'_>,
    groups: Borrowed<'_>,
    best: Borrowed<'_>,
    worst: Borrowed<'_>,
) -> PyResult<()> {
    let (scores, groups) = (vector("scores", &scores)?, vector("groups", &groups)?);
    let (best, worst) = (vector("best", &best)?, vector("worst", &worst)?);
    let scores = doubles("scores", scores)?;
    let groups = integers("groups", groups, scores.len())?;
    // SAFETY: as above.
    let (best, worst) = unsafe {
        (
            integers_out("best", best, best.len())?,
            integers_out("worst", worst, best.len())?,
        )
    };
    py.detach(|| rank::ends(scores, groups, best, worst))
        .map_err(|index| no_group(groups, index))
}

/// A ranking whose offsets lead from 0 to its end and whose elements exist.
fn ranking<'a>(
    order: &'a Array,
    offsets: &'a Array,
    len: usize,
) -> PyResult<(&'a [i64], &'a [i64])> {
    let order = integers("order", order, len)?;
    let offsets = integers("offsets", offsets, offsets.len())?;
    let rises = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    if !rises || offsets.first() != Some(&0) || offsets.last() != Some(&(len as i64)) {
        return Err(PyValueError::new_err(format!(
            "offsets: expected to rise from 0 to {len}"
        )));
    }
    all_below("order", order, len)?;
    Ok((order, offsets))
}

/// How many pairs the first beaten places make; an error if one of them is outside its group.
fn pairs_counted(offsets: &[i64], first: &[i64]) -> PyResult<usize> {
    let mut count = 0;
    for group in offsets.windows(2) {
        for place in group[0]..group[1] {
            let beaten = first[place as usize];
            if beaten <= place || beaten > group[1] {
                return Err(PyValueError::new_err(format!(
                    "first: {beaten} at {place}, expected a later place of its group"
                )));
            }
            count += (group[1] - beaten) as usize;
        }
    }
    Ok(count)
}

fn all_below(argument: &str, indices: &[i64], count: usize) -> PyResult<()> {
    let limit = count as i64;
    match indices.iter().find(|&&index| index < 0 || index >= limit) {
        None => Ok(()),
        Some(index) => Err(PyValueError::new_err(format!(
            "{argument}: {index}, expected 0 to {}",
            limit - 1
        ))),
    }
}

fn doubles<'a>(argument: &str, array: &'a Array) -> PyResult<&'a [f64]> {
    array
        .as_slice()
        .ok_or_else(|| wrong(argument, "f64", array))
}

fn integers<'a>(argument: &str, array: &'a Array, len: usize) -> PyResult<&'a [i64]> {
    let slice = array
        .as_integers()
        .ok_or_else(|| wrong(argument, "i64", array))?;
    must_have(argument, slice.len(), len)?;
    Ok(slice)
}

/// # Safety
/// Nothing else reads or writes the memory while the slice lives.
#[expect(clippy::mut_from_ref, reason = "the memory is somebody else's")]
unsafe fn integers_out<'a>(
    argument: &str,
    array: &'a Array,
    len: usize,
) -> PyResult<&'a mut [i64]> {
    must_have(argument, array.len(), len)?;
    // SAFETY: the caller's promise.
    unsafe { array.as_mut_integers() }.ok_or_else(|| wrong(argument, "i64", array))
}

fn no_group(groups: &[i64], index: usize) -> PyErr {
    PyValueError::new_err(format!("groups: {} at {index} is no group", groups[index]))
}

fn must_have(argument: &str, len: usize, wanted: usize) -> PyResult<()> {
    if len == wanted {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "{argument}: expected {wanted} values, got {len}"
    )))
}

fn wrong(argument: &str, wanted: &str, array: &Array) -> PyErr {
    PyTypeError::new_err(format!(
        "{argument}: expected a contiguous {wanted} array, got {}",
        array.dtype.name()
    ))
}
