//! Bindings of `objective::Program`.

use std::collections::HashMap;
use std::sync::OnceLock;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt, PyList};

use super::arrays::{Borrowed, Described, vector, vectors};
use super::codegen::{self, DeviceColumn, DeviceOffsets};
use crate::objective;
use crate::objective::codegen::Generated;
use crate::objective::run::{Cut, Run};

/// Programs that read fewer elements than this keep the GIL: taking it back costs more than they do.
const SHORT_RUN: usize = 1 << 13;

/// A compiled set of outputs.
#[pyclass(frozen, module = "prefuse._prefuse")]
pub struct Program {
    inner: objective::Program,
    /// The same as CUDA C++, once somebody has asked.
    generated: OnceLock<Generated>,
}

impl From<objective::Program> for Program {
    fn from(inner: objective::Program) -> Self {
        let generated = OnceLock::new();
        Program { inner, generated }
    }
}

impl Program {
    /// Runs it, without the GIL where that pays.
    pub fn execute(&self, py: Python<'_>, run: &Run) -> PyResult<()> {
        if self.inner.work(run) < SHORT_RUN {
            self.inner.run(run)?;
        } else {
            py.detach(|| self.inner.run(run))?;
        }
        Ok(())
    }

    fn generated(&self) -> &Generated {
        let generate = || Generated::new(&self.inner);
        self.generated.get_or_init(generate)
    }
}

#[pymethods]
impl Program {
    #[getter]
    pub fn columns(&self) -> Vec<&str> {
        let columns = self.inner.columns.iter();
        columns.map(|(name, _)| name.as_str()).collect()
    }

    #[getter]
    fn column_spaces(&self) -> Vec<&str> {
        let columns = self.inner.columns.iter();
        columns
            .map(|(_, space)| self.inner.space_name(*space))
            .collect()
    }

    #[getter]
    pub fn parameters(&self) -> Vec<&str> {
        self.inner.parameters.iter().map(String::as_str).collect()
    }

    #[getter]
    pub fn spaces(&self) -> Vec<&str> {
        let spaces = self.inner.spaces.iter();
        spaces.map(|space| self.inner.space_name(*space)).collect()
    }

    #[getter]
    fn output_spaces(&self) -> Vec<&str> {
        let outputs = self.inner.outputs.iter();
        outputs
            .map(|(_, space)| self.inner.space_name(*space))
            .collect()
    }

    #[getter]
    fn instructions(&self) -> Vec<String> {
        self.inner.listing()
    }

    fn run(
        &self,
        py: Python<'_>,
        columns: &Bound<'_, PyList>,
        parameters: Vec<f64>,
        offsets: &Bound<'_, PyList>,
        outputs: &Bound<'_, PyList>,
        threads: usize,
    ) -> PyResult<()> {
        let columns = vectors("columns", columns)?;
        let outputs = vectors("outputs", outputs)?;
        let cuts = offsets
            .iter()
            .enumerate()
            .map(|(index, cut)| cut_of(index, &cut))
            .collect::<PyResult<Vec<Cut>>>()?;
        let run = Run {
            columns: &columns,
            parameters: &parameters,
            cuts: &cuts,
            outputs: &outputs,
            threads,
        };
        self.execute(py, &run)
    }

    /// The CUDA C++ generated for columns and outputs of these types: (entry point, text).
    fn cuda_sources(
        &self,
        columns: Vec<(String, bool)>,
        outputs: Vec<(String, bool)>,
        one_block: bool,
    ) -> PyResult<Vec<(String, String)>> {
        codegen::sources(self.generated(), &columns, &outputs, one_block)
    }

    /// (entry point, machine code, compiler log) of the same for sm_`architecture`.
    fn cuda_compile<'py>(
        &self,
        py: Python<'py>,
        columns: Vec<(String, bool)>,
        outputs: Vec<(String, bool)>,
        one_block: bool,
        architecture: i32,
        cached: bool,
    ) -> PyResult<Vec<(&'static str, Bound<'py, PyBytes>, String)>> {
        codegen::compile(
            py,
            self.generated(),
            &columns,
            &outputs,
            one_block,
            (architecture, cached),
        )
    }

    /// Bytes of workspace that a run on CUDA needs.
    fn cuda_workspace(
        &self,
        offsets: Vec<DeviceOffsets<'_>>,
        counts: HashMap<String, usize>,
    ) -> PyResult<usize> {
        codegen::workspace((&self.inner, self.generated()), &offsets, &counts)
    }

    /// What a run on CUDA would launch.
    #[allow(clippy::too_many_arguments)] // A call's arguments, grouped in `codegen` and nowhere else.
    #[pyo3(signature = (columns, parameters, offsets, counts, outputs, workspace, one_block=None))]
    fn cuda_plan<'py>(
        &self,
        py: Python<'py>,
        columns: Vec<DeviceColumn<'_>>,
        parameters: Vec<f64>,
        offsets: Vec<DeviceOffsets<'_>>,
        counts: HashMap<String, usize>,
        outputs: Vec<DeviceColumn<'_>>,
        workspace: Option<Described<'_>>,
        one_block: Option<bool>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let call = codegen::PyCall {
            columns,
            parameters,
            offsets,
            counts,
            outputs,
            workspace,
            one_block,
        };
        codegen::plan(py, (&self.inner, self.generated()), call)
    }

    /// Queues a run on a stream of `device`.
    #[allow(clippy::too_many_arguments)]
    fn cuda_launch(
        &self,
        py: Python<'_>,
        columns: Vec<DeviceColumn<'_>>,
        parameters: Vec<f64>,
        offsets: Vec<DeviceOffsets<'_>>,
        counts: HashMap<String, usize>,
        outputs: Vec<DeviceColumn<'_>>,
        workspace: Described<'_>,
        device: i32,
        stream: usize,
    ) -> PyResult<()> {
        let call = codegen::PyCall {
            columns,
            parameters,
            offsets,
            counts,
            outputs,
            workspace: Some(workspace),
            one_block: None,
        };
        codegen::launch(py, (&self.inner, self.generated()), call, device, stream)
    }

    fn __repr__(&self) -> String {
        self.inner.listing().join("\n")
    }
}

fn cut_of(index: usize, cut: &Bound<'_, PyAny>) -> PyResult<Cut> {
    let argument = format_args!("offsets[{index}]");
    if cut.is_instance_of::<PyInt>() {
        return cut.extract().map(Cut::Count).map_err(|_| {
            PyValueError::new_err(format!("{argument}: {cut} is not a number of elements"))
        });
    }
    // The list of the call keeps the owner.
    let offsets: Borrowed = cut.extract()?;
    Ok(Cut::Offsets(*vector(argument, &offsets)?))
}
