//! Bindings of an objective's generated kernel.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::cuda::{described, run};
use super::rows::{PyView, view};
use crate::cuda::{CudaError, Launch, nvrtc};
use crate::objective::codegen::{Call, Column, DeviceCut, Generated, Signature};
use crate::objective::{self, GraphError};
use crate::view::{ArgumentError, Dtype};

/// A column or an output: a view, or a view and the indices of the elements to take.
#[derive(FromPyObject)]
pub enum DeviceColumn {
    #[pyo3(transparent)]
    Plain(PyView),
    #[pyo3(transparent)]
    Taken((PyView, PyView)),
}

/// How a space is cut: so many elements, or offsets in device memory.
#[derive(FromPyObject)]
pub enum DeviceOffsets {
    #[pyo3(transparent)]
    Count(usize),
    #[pyo3(transparent)]
    Offsets(PyView),
}

/// A program and its kernels.
type Pair<'a> = (&'a objective::Program, &'a Generated);

/// The arguments of a run on CUDA.
pub struct PyCall {
    pub columns: Vec<DeviceColumn>,
    pub parameters: Vec<f64>,
    pub offsets: Vec<DeviceOffsets>,
    /// The number of elements of each space that is cut by offsets, and of each space of pairs below one: at most.
    pub counts: HashMap<String, usize>,
    pub outputs: Vec<DeviceColumn>,
    pub workspace: usize,
    pub one_block: Option<bool>,
}

fn signature(types: &[(String, bool)]) -> Result<Signature, ArgumentError> {
    let known = |name: &str| {
        Dtype::from_name(name).ok_or_else(|| {
            ArgumentError::Type(format!(
                "unknown dtype {name:?}, expected f16, bf16, f32, f64, i64 or bool"
            ))
        })
    };
    types
        .iter()
        .map(|(name, take)| Ok((known(name)?.name(), *take)))
        .collect()
}

fn column(what: &str, column: DeviceColumn) -> Result<Column, ArgumentError> {
    Ok(match column {
        DeviceColumn::Plain(values) => Column {
            view: view(what, values)?,
            take: None,
        },
        DeviceColumn::Taken((values, take)) => Column {
            view: view(what, values)?,
            take: Some(view(what, take)?),
        },
    })
}

fn cuts(
    program: &objective::Program,
    offsets: Vec<DeviceOffsets>,
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
            DeviceOffsets::Count(count) => Ok(DeviceCut::Count(count)),
            DeviceOffsets::Offsets(offsets) => {
                let count = *counts.get(name).ok_or_else(|| missing(name))?;
                Ok(DeviceCut::Offsets(view("offsets", offsets)?, count))
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

/// (entry point, machine code, compiler log) for an architecture, not from the cache.
pub fn compile<'py>(
    py: Python<'py>,
    generated: &Generated,
    columns: &[(String, bool)],
    outputs: &[(String, bool)],
    one_block: bool,
    architecture: i32,
) -> PyResult<Vec<(&'static str, Bound<'py, PyBytes>, String)>> {
    let programs = generated.programs(&signature(columns)?, &signature(outputs)?, one_block);
    let compiled = py.detach(|| {
        let nvrtc = nvrtc::nvrtc()?;
        programs
            .iter()
            .map(|entry| Ok((entry.kernel, nvrtc.compile(entry, architecture)?)))
            .collect::<Result<Vec<_>, CudaError>>()
    })?;
    Ok(compiled
        .into_iter()
        .map(|(name, code)| (name, PyBytes::new(py, &code.cubin), code.log))
        .collect())
}

/// Bytes of workspace.
pub fn workspace(
    (program, generated): Pair,
    offsets: Vec<DeviceOffsets>,
    counts: &HashMap<String, usize>,
) -> PyResult<usize> {
    let cuts = cuts(program, offsets, counts)?;
    Ok(generated.workspace(program, &cuts, &pairs(program, counts))?)
}

fn launches((program, generated): Pair, call: PyCall) -> PyResult<Vec<Launch>> {
    let columns = call.columns.into_iter().map(|it| column("columns", it));
    let outputs = call.outputs.into_iter().map(|it| column("outputs", it));
    let call = Call {
        columns: &columns.collect::<Result<Vec<_>, _>>()?,
        parameters: &call.parameters,
        cuts: &cuts(program, call.offsets, &call.counts)?,
        pairs: &pairs(program, &call.counts),
        outputs: &outputs.collect::<Result<Vec<_>, _>>()?,
        workspace: call.workspace,
        one_block: call.one_block,
    };
    Ok(generated.launches(program, &call)?)
}

/// The launches of a run, as dictionaries.
pub fn plan<'py>(py: Python<'py>, pair: Pair, call: PyCall) -> PyResult<Vec<Bound<'py, PyDict>>> {
    described(py, launches(pair, call)?)
}

/// Queues a run on a stream of a device.
pub fn launch(
    py: Python<'_>,
    pair: Pair,
    call: PyCall,
    device: i32,
    stream: usize,
) -> PyResult<()> {
    run(py, device, stream, launches(pair, call)?)
}
