//! Bindings of an objective's generated kernel.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::arrays::{Described, Place, number};
use super::cuda::{address_of, described, run};
use crate::array::{ArgumentError, Dtype};
use crate::cuda::{CudaError, Launch, cache, nvrtc};
use crate::objective::codegen::{Call, Column, DeviceCut, Generated, Signature};
use crate::objective::{self, GraphError};

/// A column or an output: an array, or an array and the indices of the elements to take.
#[derive(FromPyObject)]
pub enum DeviceColumn<'py> {
    #[pyo3(transparent)]
    Plain(Described<'py>),
    #[pyo3(transparent)]
    Taken((Described<'py>, Described<'py>)),
}

/// How a space is cut: so many elements, or offsets in device memory.
#[derive(FromPyObject)]
pub enum DeviceOffsets<'py> {
    #[pyo3(transparent)]
    Count(#[pyo3(from_py_with = number)] usize),
    #[pyo3(transparent)]
    Offsets(Described<'py>),
}

/// A program and its kernels.
type Pair<'a> = (&'a objective::Program, &'a Generated);

/// The arguments of a run on CUDA.
pub struct PyCall<'py> {
    pub columns: Vec<DeviceColumn<'py>>,
    pub parameters: Vec<f64>,
    pub offsets: Vec<DeviceOffsets<'py>>,
    /// The number of elements of each space that is cut by offsets, and of each space of pairs below one: at most.
    pub counts: HashMap<String, usize>,
    pub outputs: Vec<DeviceColumn<'py>>,
    pub workspace: Option<Described<'py>>,
    pub one_block: Option<bool>,
}

fn signature(types: &[(String, bool)]) -> Result<Signature, ArgumentError> {
    let entry = |(name, take): &(String, bool)| Ok((Dtype::named(name)?.name(), *take));
    types.iter().map(entry).collect()
}

fn columns(
    argument: &str,
    place: Option<Place>,
    given: &[DeviceColumn],
) -> Result<Vec<Column>, ArgumentError> {
    let column = |(index, column): (usize, &DeviceColumn)| {
        let argument = format_args!("{argument}[{index}]");
        let (values, take) = match column {
            DeviceColumn::Plain(values) => (values, None),
            DeviceColumn::Taken((values, take)) => (values, Some(take)),
        };
        Ok(Column {
            view: *values.at(place, argument)?,
            take: take
                .map(|take| take.at(place, argument).copied())
                .transpose()?,
        })
    };
    given.iter().enumerate().map(column).collect()
}

fn cuts(
    program: &objective::Program,
    place: Option<Place>,
    offsets: &[DeviceOffsets],
    counts: &HashMap<String, usize>,
) -> PyResult<Vec<DeviceCut>> {
    let spaces = program
        .spaces
        .iter()
        .map(|&space| program.space_name(space));
    let missing = |name: &str| {
        GraphError(format!(
            "counts: expected the number of elements of '{name}'"
        ))
    };
    spaces
        .zip(offsets)
        .map(|(name, cut)| match cut {
            DeviceOffsets::Count(count) => Ok(DeviceCut::Count(*count)),
            DeviceOffsets::Offsets(offsets) => {
                let count = *counts.get(name).ok_or_else(|| missing(name))?;
                Ok(DeviceCut::Offsets(*offsets.at(place, "offsets")?, count))
            }
        })
        .collect()
}

fn pairs(program: &objective::Program, counts: &HashMap<String, usize>) -> Vec<Option<usize>> {
    program
        .pair_spaces()
        .map(|space| counts.get(program.space_name(space)).copied())
        .collect()
}

/// The generated texts, by entry point.
pub fn sources(
    generated: &Generated,
    columns: &[(String, bool)],
    outputs: &[(String, bool)],
    one_block: bool,
) -> PyResult<Vec<(String, String)>> {
    Ok(generated.entries(&signature(columns)?, &signature(outputs)?, one_block))
}

/// (entry point, machine code, compiler log) for an architecture; with `cached`, code from the cache and an empty log.
pub fn compile<'py>(
    py: Python<'py>,
    generated: &Generated,
    columns: &[(String, bool)],
    outputs: &[(String, bool)],
    one_block: bool,
    (architecture, cached): (i32, bool),
) -> PyResult<Vec<(&'static str, Bound<'py, PyBytes>, String)>> {
    let programs = generated.programs(&signature(columns)?, &signature(outputs)?, one_block);
    let compiled = py.detach(|| {
        let nvrtc = nvrtc::nvrtc()?;
        programs
            .iter()
            .map(|entry| {
                if cached {
                    let cubin = cache::compiled(nvrtc, entry, architecture)?;
                    return Ok((entry.kernel, cubin, String::new()));
                }
                let code = nvrtc.compile(entry, architecture)?;
                Ok((entry.kernel, code.cubin, code.log))
            })
            .collect::<Result<Vec<_>, CudaError>>()
    })?;
    Ok(compiled
        .into_iter()
        .map(|(name, cubin, log)| (name, PyBytes::new(py, &cubin), log))
        .collect())
}

/// Bytes of workspace.
pub fn workspace(
    (program, generated): Pair,
    offsets: &[DeviceOffsets],
    counts: &HashMap<String, usize>,
) -> PyResult<usize> {
    let cuts = cuts(program, None, offsets, counts)?;
    Ok(generated.workspace(program, &cuts, &pairs(program, counts))?)
}

fn launches(
    (program, generated): Pair,
    place: Option<Place>,
    call: &PyCall,
) -> PyResult<Vec<Launch>> {
    let call = Call {
        columns: &columns("columns", place, &call.columns)?,
        parameters: &call.parameters,
        cuts: &cuts(program, place, &call.offsets, &call.counts)?,
        pairs: &pairs(program, &call.counts),
        outputs: &columns("outputs", place, &call.outputs)?,
        workspace: address_of(place, call.workspace.as_ref())?,
        one_block: call.one_block,
    };
    Ok(generated.launches(program, &call)?)
}

/// The launches of a run, as dictionaries.
pub fn plan<'py>(py: Python<'py>, pair: Pair, call: PyCall) -> PyResult<Vec<Bound<'py, PyDict>>> {
    described(py, launches(pair, None, &call)?)
}

/// Queues a run on a stream of a device.
pub fn launch(
    py: Python<'_>,
    pair: Pair,
    call: PyCall<'_>,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    let place = Place::Cuda(device);
    run(py, device, stream, launches(pair, Some(place), &call)?)
}
