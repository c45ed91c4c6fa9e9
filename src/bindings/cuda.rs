//! Bindings of CUDA: rows and segments on a device, the same as launch plans for the emulator, and what the doctor asks.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::arrays::{Borrowed, Described, Place, by_statistic};
use super::rows::{PyRows, statistics};
use crate::array::ArgumentError;
use crate::columns;
use crate::cuda::{self, CudaError, Device, Launch, Program, cache, driver, nvrtc};
use crate::distances::{Samples, cuda as distances_cuda};
use crate::rows::cuda::{self as rows_cuda, Target};
use crate::segments::cuda as segments_cuda;

impl From<CudaError> for PyErr {
    fn from(error: CudaError) -> PyErr {
        PyRuntimeError::new_err(error.0)
    }
}

/// Runs launches on a stream of a device; the GIL is not held, since the first use of a kernel compiles it.
pub(super) fn run(
    py: Python<'_>,
    device: i32,
    stream: usize,
    launches: Vec<Launch>,
) -> PyResult<()> {
    // SAFETY: the arrays are of this device, and the Python half launches on the stream that PyTorch's allocator orders their memory by.
    py.detach(|| unsafe { cuda::launch(Device::get(device)?, stream, &launches) })?;
    Ok(())
}

/// The address of the workspace; 0 where a plan has none.
pub(super) fn address_of(
    place: Option<Place>,
    workspace: Option<&Described>,
) -> Result<usize, ArgumentError> {
    let address = |given: &Described| Ok(given.at(place, "workspace")?.address);
    workspace.map_or(Ok(0), address)
}

/// The place that memory of a device has; an error where there is no such device.
pub(super) fn there(device: i32) -> PyResult<Place> {
    Device::get(device)?;
    Ok(Place::Cuda(device))
}

/// Numbers, of the statistics' dtype, of workspace that a forward call needs on `device`.
#[pyfunction]
pub fn cuda_rows_workspace(
    logits: Described<'_>,
    reference: Option<Described<'_>>,
    stats: u32,
    device: i32,
) -> PyResult<usize> {
    let reference = reference.as_ref().map(Described::shape);
    Ok(rows_cuda::forward_workspace(
        logits.shape(),
        reference,
        &statistics(stats)?,
        Device::get(device)?.multiprocessors,
    ))
}

/// Queues a forward call on a stream of `device`: as `rows_forward`, with device memory.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn cuda_rows_forward(
    py: Python<'_>,
    rows: PyRows<'_>,
    stats: u32,
    k: usize,
    out: Borrowed<'_>,
    workspace: Borrowed<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let place = there(device)?;
    let rows = rows.at(Some(place))?;
    let multiprocessors = Device::get(device)?.multiprocessors;
    let launches = rows_cuda::forward(
        &rows,
        &statistics(stats)?,
        k,
        &by_statistic("out", out.at(place, "out")?)?,
        workspace.at(place, "workspace")?.address,
        multiprocessors,
    )?;
    run(py, device, stream, launches)
}

/// Queues a backward call on a stream of `device`: as `rows_backward`, with device memory.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn cuda_rows_backward(
    py: Python<'_>,
    rows: PyRows<'_>,
    stats: u32,
    grads: Borrowed<'_>,
    saved: Borrowed<'_>,
    gradient: Borrowed<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let place = there(device)?;
    let rows = rows.at(Some(place))?;
    let (grads, saved, gradient) = (
        by_statistic("grads", grads.at(place, "grads")?)?,
        by_statistic("saved", saved.at(place, "saved")?)?,
        gradient.at(place, "gradient")?,
    );
    run(
        py,
        device,
        stream,
        rows_cuda::backward(&rows, &statistics(stats)?, &grads, &saved, gradient)?,
    )
}

/// Queues a forward and a backward call in one: as `rows_both`, with device memory; `workspace` as for `cuda_rows_forward`.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn cuda_rows_both(
    py: Python<'_>,
    rows: PyRows<'_>,
    stats: u32,
    k: usize,
    grads: Borrowed<'_>,
    out: Borrowed<'_>,
    gradient: Borrowed<'_>,
    workspace: Borrowed<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let place = there(device)?;
    let rows = rows.at(Some(place))?;
    let stats = statistics(stats)?;
    let (grads, out, gradient) = (
        by_statistic("grads", grads.at(place, "grads")?)?,
        by_statistic("out", out.at(place, "out")?)?,
        gradient.at(place, "gradient")?,
    );
    let workspace = workspace.at(place, "workspace")?.address;
    let plan = |target| {
        rows_cuda::both(
            &rows,
            (&stats, k),
            &grads,
            &out,
            gradient,
            workspace,
            target,
        )
    };
    let on = Device::get(device)?;
    let target = Target::from(on);
    let mut launches = plan(target)?;
    if !py.detach(|| driver::has_places(on, stream, &launches))? {
        launches = plan(target.without_clusters())?;
    }
    run(py, device, stream, launches)
}

/// Queues a segment sum on a stream of `device`.
#[pyfunction]
pub fn cuda_segment_sum(
    py: Python<'_>,
    values: Borrowed<'_>,
    offsets: Borrowed<'_>,
    out: Borrowed<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let place = there(device)?;
    let launches = segments_cuda::sum(
        values.at(place, "values")?,
        offsets.at(place, "offsets")?,
        out.at(place, "out")?,
    )?;
    run(py, device, stream, launches)
}

/// Queues a segment expansion on a stream of `device`.
#[pyfunction]
pub fn cuda_segment_expand(
    py: Python<'_>,
    values: Borrowed<'_>,
    offsets: Borrowed<'_>,
    out: Borrowed<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let place = there(device)?;
    let launches = segments_cuda::expand(
        values.at(place, "values")?,
        offsets.at(place, "offsets")?,
        out.at(place, "out")?,
    )?;
    run(py, device, stream, launches)
}

/// f64 numbers of workspace that squared distances need.
#[pyfunction]
pub fn cuda_distance_workspace(first: Described<'_>, second: Described<'_>) -> PyResult<usize> {
    Ok(distances_cuda::workspace(&Samples::new(
        *first.shape(),
        *second.shape(),
    )?))
}

/// Queues squared distances on a stream of `device`: as `distance_forward`, with device memory.
#[pyfunction]
pub fn cuda_distance_forward(
    py: Python<'_>,
    first: Borrowed<'_>,
    second: Borrowed<'_>,
    out: Borrowed<'_>,
    workspace: Borrowed<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let place = there(device)?;
    let launches = distances_cuda::forward(
        &Samples::new(*first.at(place, "first")?, *second.at(place, "second")?)?,
        out.at(place, "out")?,
        workspace.at(place, "workspace")?.address,
    )?;
    run(py, device, stream, launches)
}

/// Queues the gradient of squared distances on a stream of `device`: as `distance_backward`, with device memory.
#[pyfunction]
pub fn cuda_distance_backward(
    py: Python<'_>,
    first: Borrowed<'_>,
    second: Borrowed<'_>,
    grads: Borrowed<'_>,
    gradient: Borrowed<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let place = there(device)?;
    let (grads, gradient) = (grads.at(place, "grads")?, gradient.at(place, "gradient")?);
    let launches = distances_cuda::backward(
        &Samples::new(*first.at(place, "first")?, *second.at(place, "second")?)?,
        grads,
        gradient,
    )?;
    run(py, device, stream, launches)
}

/// Says where to look for NVRTC: paths or names, the preferred first.
#[pyfunction]
pub fn cuda_search_nvrtc(candidates: Vec<String>) {
    nvrtc::search(candidates);
}

/// (path, version "13.2", compute capabilities) of the NVRTC in use; a RuntimeError where there is none.
#[pyfunction]
pub fn cuda_nvrtc() -> PyResult<(&'static str, String, &'static [i32])> {
    let nvrtc = nvrtc::nvrtc()?;
    Ok((
        &nvrtc.path,
        format!("{}.{}", nvrtc.version.0, nvrtc.version.1),
        &nvrtc.architectures,
    ))
}

/// The driver's CUDA version, 13020 for 13.2; a RuntimeError where there is no driver.
#[pyfunction]
pub fn cuda_driver_version() -> PyResult<i32> {
    Ok(driver::version()?)
}

/// (name, compute capability as 90 for 9.0, multiprocessors) of every device.
#[pyfunction]
pub fn cuda_devices() -> PyResult<Vec<(String, i32, usize)>> {
    let describe =
        |ordinal| Device::get(ordinal).map(|d| (d.name.clone(), d.capability, d.multiprocessors));
    Ok((0..driver::count()?)
        .map(describe)
        .collect::<cuda::Result<_>>()?)
}

/// The directory of compiled kernels; a RuntimeError that says why none is used.
#[pyfunction]
pub fn cuda_cache_directory() -> PyResult<String> {
    cache::directory()
        .map(|path| path.display().to_string())
        .map_err(PyRuntimeError::new_err)
}

/// (machine code, compiler log) of a kernel for sm_`architecture`; with `cached`, code from the cache and an empty log.
#[pyfunction]
pub fn cuda_compile<'py>(
    py: Python<'py>,
    kernel: &str,
    defines: Vec<(String, String)>,
    architecture: i32,
    cached: bool,
) -> PyResult<(Bound<'py, PyBytes>, String)> {
    let program = program(kernel, &defines)?;
    let (cubin, log) = py.detach(|| {
        let nvrtc = nvrtc::nvrtc()?;
        if cached {
            return cache::compiled(nvrtc, &program, architecture)
                .map(|cubin| (cubin, String::new()));
        }
        nvrtc
            .compile(&program, architecture)
            .map(|compiled| (compiled.cubin, compiled.log))
    })?;
    Ok((PyBytes::new(py, &cubin), log))
}

/// The program of that name with these definitions, which must be among those it knows: a name, a number or a type, nothing else.
fn program(kernel: &str, defines: &[(String, String)]) -> PyResult<Program> {
    let refuse = |what: &str| PyRuntimeError::new_err(format!("no kernel {kernel:?} with {what}"));
    let rooms = [
        rows_cuda::PROGRAMS,
        segments_cuda::PROGRAMS,
        distances_cuda::PROGRAMS,
        columns::PROGRAMS,
    ];
    let &(kernel, source, names) = rooms
        .iter()
        .copied()
        .flatten()
        .find(|(name, ..)| *name == kernel)
        .ok_or_else(|| refuse("that name"))?;
    let defines = defines
        .iter()
        .map(|(name, value)| {
            let name = names
                .iter()
                .find(|known| *known == name)
                .ok_or_else(|| refuse(name))?;
            let plain = !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric());
            if plain {
                Ok((*name, value.clone()))
            } else {
                Err(refuse(value))
            }
        })
        .collect::<PyResult<_>>()?;
    Ok(Program {
        kernel,
        source,
        defines,
    })
}

/// What a launch would run, as a dictionary: kernel, sources [(name, text)] (the kernel's own last, behind the headers), defines [(name, value)], grid, block, cluster, shared,
/// argument (bytes).
pub(super) fn described<'py>(
    py: Python<'py>,
    launches: Vec<Launch>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    launches
        .into_iter()
        .map(|launch| {
            let program = &launch.program;
            let sources: Vec<_> = program
                .headers()
                .into_iter()
                .chain([program.source])
                .map(|source| (source.name, source.text))
                .collect();
            let description = PyDict::new(py);
            description.set_item("kernel", launch.program.kernel)?;
            description.set_item("sources", sources)?;
            description.set_item("defines", launch.program.defines)?;
            description.set_item("grid", launch.grid)?;
            description.set_item("block", launch.block)?;
            description.set_item("cluster", launch.cluster)?;
            description.set_item("shared", launch.shared)?;
            description.set_item("argument", PyBytes::new(py, &launch.argument))?;
            Ok(description)
        })
        .collect()
}

/// The numbers of workspace and the launches of a forward call on a device of so many multiprocessors.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn cuda_plan_rows_forward<'py>(
    py: Python<'py>,
    rows: PyRows<'_>,
    stats: u32,
    k: usize,
    out: Described<'_>,
    workspace: Option<Described<'_>>,
    multiprocessors: usize,
) -> PyResult<(usize, Vec<Bound<'py, PyDict>>)> {
    let rows = rows.at(None)?;
    let stats = statistics(stats)?;
    let numbers = rows_cuda::forward_workspace(
        &rows.logits,
        rows.reference.as_ref(),
        &stats,
        multiprocessors,
    );
    let launches = rows_cuda::forward(
        &rows,
        &stats,
        k,
        &by_statistic("out", out.shape())?,
        address_of(None, workspace.as_ref())?,
        multiprocessors,
    )?;
    Ok((numbers, described(py, launches)?))
}

/// The launches of a backward call.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn cuda_plan_rows_backward<'py>(
    py: Python<'py>,
    rows: PyRows<'_>,
    stats: u32,
    grads: Described<'_>,
    saved: Described<'_>,
    gradient: Described<'_>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let rows = rows.at(None)?;
    let stats = statistics(stats)?;
    let (grads, saved, gradient) = (
        by_statistic("grads", grads.shape())?,
        by_statistic("saved", saved.shape())?,
        gradient.shape(),
    );
    described(
        py,
        rows_cuda::backward(&rows, &stats, &grads, &saved, gradient)?,
    )
}

/// The launches of a call for both on a device of so many multiprocessors, this compute capability (90 for 9.0), and so many bytes
/// of shared memory per block.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn cuda_plan_rows_both<'py>(
    py: Python<'py>,
    rows: PyRows<'_>,
    stats: u32,
    k: usize,
    grads: Described<'_>,
    out: Described<'_>,
    gradient: Described<'_>,
    workspace: Option<Described<'_>>,
    target: (usize, i32, usize),
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let rows = rows.at(None)?;
    let stats = statistics(stats)?;
    let (grads, out, gradient) = (
        by_statistic("grads", grads.shape())?,
        by_statistic("out", out.shape())?,
        gradient.shape(),
    );
    let (multiprocessors, capability, shared) = target;
    let target = Target {
        multiprocessors,
        capability,
        shared,
    };
    described(
        py,
        rows_cuda::both(
            &rows,
            (&stats, k),
            &grads,
            &out,
            gradient,
            address_of(None, workspace.as_ref())?,
            target,
        )?,
    )
}

/// The launches of a segment sum.
#[pyfunction]
pub fn cuda_plan_segment_sum<'py>(
    py: Python<'py>,
    values: Described<'_>,
    offsets: Described<'_>,
    out: Described<'_>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    described(
        py,
        segments_cuda::sum(values.shape(), offsets.shape(), out.shape())?,
    )
}

/// The launches of a segment expansion.
#[pyfunction]
pub fn cuda_plan_segment_expand<'py>(
    py: Python<'py>,
    values: Described<'_>,
    offsets: Described<'_>,
    out: Described<'_>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    described(
        py,
        segments_cuda::expand(values.shape(), offsets.shape(), out.shape())?,
    )
}

/// The launches of squared distances.
#[pyfunction]
pub fn cuda_plan_distance_forward<'py>(
    py: Python<'py>,
    first: Described<'_>,
    second: Described<'_>,
    out: Described<'_>,
    workspace: Option<Described<'_>>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let launches = distances_cuda::forward(
        &Samples::new(*first.shape(), *second.shape())?,
        out.shape(),
        address_of(None, workspace.as_ref())?,
    )?;
    described(py, launches)
}

/// The launches of the gradient of squared distances.
#[pyfunction]
pub fn cuda_plan_distance_backward<'py>(
    py: Python<'py>,
    first: Described<'_>,
    second: Described<'_>,
    grads: Described<'_>,
    gradient: Described<'_>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let (grads, gradient) = (grads.shape(), gradient.shape());
    let launches = distances_cuda::backward(
        &Samples::new(*first.shape(), *second.shape())?,
        grads,
        gradient,
    )?;
    described(py, launches)
}
