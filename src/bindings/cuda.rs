//! Bindings of the CUDA side of `rows` and `segments`.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::rows::{PyTemperature, PyView, rows, statistics, view};
use crate::cuda::Launch;
use crate::rows::cuda as rows_cuda;
use crate::segments::cuda as segments_cuda;

/// What a launch would run, as a dictionary: kernel, sources [(name, text)], defines [(name, value)], grid, block, argument (bytes).
fn described<'py>(py: Python<'py>, launches: Vec<Launch>) -> PyResult<Vec<Bound<'py, PyDict>>> {
    launches
        .into_iter()
        .map(|launch| {
            let sources: Vec<_> =
                launch.program.sources.iter().map(|source| (source.name, source.text)).collect();
            let description = PyDict::new(py);
            description.set_item("kernel", launch.program.kernel)?;
            description.set_item("sources", sources)?;
            description.set_item("defines", launch.program.defines)?;
            description.set_item("grid", launch.grid)?;
            description.set_item("block", launch.block)?;
            description.set_item("argument", PyBytes::new(py, &launch.argument))?;
            Ok(description)
        })
        .collect()
}

/// The numbers of workspace and the launches of a forward call on a device of so many multiprocessors.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn cuda_plan_rows_forward<'py>(
    py: Python<'py>,
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
    workspace: usize,
    multiprocessors: usize,
) -> PyResult<(usize, Vec<Bound<'py, PyDict>>)> {
    let rows = rows(logits, labels, mask, reference, temperature, scale, softcap, ignore_index)?;
    let stats = statistics(&stats)?;
    let numbers = rows_cuda::forward_workspace(&rows, &stats, multiprocessors);
    let launches = rows_cuda::forward(&rows, &stats, k, &view("out", out)?, workspace, multiprocessors)?;
    Ok((numbers, described(py, launches)?))
}

/// The launches of a backward call.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn cuda_plan_rows_backward<'py>(
    py: Python<'py>,
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
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let rows = rows(logits, labels, mask, reference, temperature, scale, softcap, ignore_index)?;
    let stats = statistics(&stats)?;
    let (grads, saved, gradient) = (view("grads", grads)?, view("saved", saved)?, view("gradient", gradient)?);
    described(py, rows_cuda::backward(&rows, &stats, &grads, &saved, &gradient)?)
}

/// The launches of a segment sum.
#[pyfunction]
fn cuda_plan_segment_sum<'py>(
    py: Python<'py>,
    values: PyView,
    offsets: PyView,
    out: PyView,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    described(py, segments_cuda::sum(&view("values", values)?, &view("offsets", offsets)?, &view("out", out)?)?)
}

/// The launches of a segment expansion.
#[pyfunction]
fn cuda_plan_segment_expand<'py>(
    py: Python<'py>,
    values: PyView,
    offsets: PyView,
    out: PyView,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    described(py, segments_cuda::expand(&view("values", values)?, &view("offsets", offsets)?, &view("out", out)?)?)
}

/// Registers the functions of this room.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(cuda_plan_rows_forward, module)?)?;
    module.add_function(wrap_pyfunction!(cuda_plan_rows_backward, module)?)?;
    module.add_function(wrap_pyfunction!(cuda_plan_segment_sum, module)?)?;
    module.add_function(wrap_pyfunction!(cuda_plan_segment_expand, module)?)?;
    Ok(())
}
