//! The short way for small batches: plain tensors on the CPU, whose floats are all f32 or all f64, one value per item.
//!
//! Scoring 64 pairs is two microseconds of arithmetic. To look at their columns and to make what a program takes of them
//! is as much here, and several times that in Python. Nothing is laid out or converted; whatever does not fit is left to
//! the general way, errors included.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::arrays::vector_of;
use super::dlpack::{Torch, look_at};
use super::program::Program;
use crate::array::{Array, Dtype};
use crate::objective::run::{Cut, Run};

/// From this many items on, more than one thread pays.
pub(super) const PARALLEL: usize = 1 << 15;

/// How an objective with one value per item scores a batch.
#[pyclass(frozen, module = "prefuse._prefuse")]
pub struct Short {
    columns: Vec<Py<PyString>>,
    /// The place of a column with one value per item.
    item: usize,
    reduced: bool,
    /// How many extras there are for each item, and for the batch.
    extras: (usize, usize),
    /// What makes results of f32, and of f64.
    makers: (Maker, Maker),
    /// Columns whose gradients are wanted -> their program.
    compile: Py<PyAny>,
    steps: Mutex<Vec<Arc<Step>>>,
}

/// A program, and where its arguments are found.
struct Step {
    wrt: Vec<usize>,
    wrt_names: Py<PyTuple>,
    program: Py<Program>,
    columns: Vec<usize>,
    parameters: Vec<Py<PyString>>,
    spaces: usize,
}

/// What a look at the columns of a call finds.
struct Columns<'py> {
    tensors: Vec<Bound<'py, PyAny>>,
    arrays: Vec<Array>,
    wide: bool,
    trainable: Vec<usize>,
}

/// The names of columns, the columns, the gradients that they get, and the versions of all arguments.
type Differentiated<'py> = (
    Bound<'py, PyTuple>,
    Bound<'py, PyTuple>,
    Bound<'py, PyTuple>,
    Bound<'py, PyTuple>,
);

/// Loss, number of items, extras, and what is differentiated.
type Scored<'py> = (
    Bound<'py, PyAny>,
    usize,
    Bound<'py, PyAny>,
    Option<Differentiated<'py>>,
);

#[pymethods]
impl Short {
    #[new]
    fn new(
        columns: Vec<Py<PyString>>,
        item: usize,
        reduced: bool,
        extras: (usize, usize),
        prototypes: (Bound<'_, PyAny>, Bound<'_, PyAny>),
        compile: Py<PyAny>,
    ) -> PyResult<Short> {
        let (single, double) = prototypes;
        Ok(Short {
            columns,
            item,
            reduced,
            extras,
            makers: (Maker::new(single)?, Maker::new(double)?),
            compile,
            steps: Mutex::default(),
        })
    }

    fn score<'py>(
        &self,
        arguments: &Bound<'py, PyDict>,
        numbers: &Bound<'py, PyDict>,
        gradients: bool,
        any: bool,
    ) -> PyResult<Option<Scored<'py>>> {
        let py = arguments.py();
        let Some(columns) = self.look(arguments)? else {
            return Ok(None);
        };
        let step = self.step(py, self.wanted(&columns, gradients, any))?;
        let count = columns.arrays[self.item].len();
        let maker = if columns.wide {
            &self.makers.1
        } else {
            &self.makers.0
        };

        let (per_item, others) = self.extras;
        let extras = maker.vector(py, per_item * count + others)?;
        let (loss, differentiated) = match self.reduced {
            true => (maker.number(py)?, step.wrt.as_slice()),
            false => (maker.vector(py, count)?, [].as_slice()),
        };
        let like = |&column: &usize| Torch::get(py)?.empty_like(&columns.tensors[column]);
        let gradients = differentiated
            .iter()
            .map(like)
            .collect::<PyResult<Vec<_>>>()?;

        let outputs = [&loss, &extras].into_iter().chain(&gradients);
        let Some(outputs) = outputs.map(vector_in).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        step.run(py, &columns, numbers, count, &outputs)?;
        let differentiated = match step.wrt.is_empty() {
            true => None,
            false => Some((
                step.wrt_names.bind(py).clone(),
                PyTuple::new(py, step.wrt.iter().map(|&column| &columns.tensors[column]))?,
                PyTuple::new(py, gradients)?,
                versions_of(arguments)?,
            )),
        };
        Ok(Some((loss, count, extras, differentiated)))
    }
}

impl Short {
    /// The columns, if they are plain tensors on the CPU, none negated lazily, of at most one dimension each, whose floats
    /// are all f32 or all f64.
    fn look<'py>(&self, arguments: &Bound<'py, PyDict>) -> PyResult<Option<Columns<'py>>> {
        let py = arguments.py();
        let torch = Torch::get(py)?;
        let mut tensors = Vec::with_capacity(self.columns.len());
        let mut arrays = Vec::with_capacity(self.columns.len());
        let (mut floats, mut trainable) = (None, Vec::new());
        for (place, name) in self.columns.iter().enumerate() {
            let plain = arguments.get_item(name)?.filter(|it| torch.is_plain(it));
            let Some(tensor) = plain else {
                return Ok(None);
            };
            let Some(array) = vector_in(&tensor) else {
                return Ok(None);
            };
            match array.dtype {
                Dtype::I64 | Dtype::Bool => {} // lengths and labels, which are read as they are
                Dtype::F32 | Dtype::F64 if floats.is_none_or(|own| own == array.dtype) => {
                    floats = Some(array.dtype);
                }
                _ => return Ok(None),
            }
            if tensor.call_method0(intern!(py, "is_neg"))?.is_truthy()? {
                return Ok(None);
            }
            if tensor.getattr(intern!(py, "requires_grad"))?.is_truthy()? {
                trainable.push(place);
            }
            tensors.push(tensor);
            arrays.push(array);
        }
        Ok(floats.map(|dtype| Columns {
            tensors,
            arrays,
            wide: dtype == Dtype::F64,
            trainable,
        }))
    }

    /// The columns to differentiate by: those that require grad; with `any` all of them where none does.
    fn wanted(&self, columns: &Columns, gradients: bool, any: bool) -> Vec<usize> {
        match (gradients, columns.trainable.is_empty()) {
            (false, _) => Vec::new(),
            (true, true) if any => (0..self.columns.len()).collect(),
            (true, _) => columns.trainable.clone(),
        }
    }

    fn step(&self, py: Python<'_>, wrt: Vec<usize>) -> PyResult<Arc<Step>> {
        let found = self.known().iter().find(|step| step.wrt == wrt).cloned();
        if let Some(step) = found {
            return Ok(step);
        }
        // Without the lock: to compile is to run Python.
        let step = Arc::new(Step::new(py, &self.columns, wrt, &self.compile)?);
        self.known().push(step.clone());
        Ok(step)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Step>>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Step {
    fn new(
        py: Python<'_>,
        names: &[Py<PyString>],
        wrt: Vec<usize>,
        compile: &Py<PyAny>,
    ) -> PyResult<Step> {
        let wrt_names = PyTuple::new(py, wrt.iter().map(|&column| &names[column]))?;
        let program: Py<Program> = compile.call1(py, (&wrt_names,))?.extract(py)?;
        let texts = names
            .iter()
            .map(|name| name.to_str(py))
            .collect::<PyResult<Vec<_>>>()?;
        let place = |column: &str| texts.iter().position(|name| *name == column);
        let (columns, parameters, spaces) = {
            let program = program.get();
            let columns = program.columns().into_iter().filter_map(place).collect();
            let parameters = program.parameters().into_iter();
            let parameters = parameters
                .map(|name| PyString::intern(py, name).unbind())
                .collect();
            (columns, parameters, program.spaces().len())
        };
        Ok(Step {
            wrt,
            wrt_names: wrt_names.unbind(),
            program,
            columns,
            parameters,
            spaces,
        })
    }

    fn run(
        &self,
        py: Python<'_>,
        columns: &Columns,
        numbers: &Bound<'_, PyDict>,
        count: usize,
        outputs: &[Array],
    ) -> PyResult<()> {
        let number = |name| numbers.as_any().get_item(name)?.extract::<f64>();
        let parameters = self
            .parameters
            .iter()
            .map(number)
            .collect::<PyResult<Vec<_>>>()?;
        let arrays: Vec<Array> = self
            .columns
            .iter()
            .map(|&column| columns.arrays[column])
            .collect();
        let cuts: Vec<Cut> = (0..self.spaces).map(|_| Cut::Count(count)).collect();
        let threads = if count < PARALLEL {
            1
        } else {
            Torch::threads(py)?
        };
        let run = Run {
            columns: &arrays,
            parameters: &parameters,
            cuts: &cuts,
            outputs,
            threads,
        };
        self.program.get().execute(py, &run)
    }
}

/// Makes results of one dtype out of a tensor of it: cheaper than asking PyTorch for a dtype and a device, and blind to
/// its defaults.
struct Maker {
    prototype: Py<PyAny>,
    new_empty: Py<PyAny>,
}

impl Maker {
    fn new(prototype: Bound<'_, PyAny>) -> PyResult<Maker> {
        let new_empty = prototype.getattr("new_empty")?.unbind();
        let prototype = prototype.unbind();
        Ok(Maker {
            prototype,
            new_empty,
        })
    }

    fn number<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Torch::get(py)?.empty_like(self.prototype.bind(py))
    }

    fn vector<'py>(&self, py: Python<'py>, len: usize) -> PyResult<Bound<'py, PyAny>> {
        self.new_empty.bind(py).call1((len,))
    }
}

/// Whether the tensor is the number 1, in memory of the CPU: of one that is no memory, such as a tracer's, nobody knows.
#[pyfunction]
pub fn is_one(tensor: &Bound<'_, PyAny>) -> bool {
    let mut value = [0.0];
    match vector_in(tensor) {
        Some(array) if array.is_scalar() => array.read(&mut value),
        _ => {}
    }
    value == [1.0]
}

/// How often tensors have been changed in place; `None` for those made for inference, which do not count it.
#[pyfunction]
pub fn versions_of<'py>(tensors: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyTuple>> {
    let py = tensors.py();
    let version =
        |(_, tensor): (_, Bound<'py, PyAny>)| tensor.getattr(intern!(py, "_version")).ok();
    PyTuple::new(py, tensors.iter().map(version).collect::<Vec<_>>())
}

/// A tensor of at most one dimension on the CPU.
fn vector_in(tensor: &Bound<'_, PyAny>) -> Option<Array> {
    look_at(tensor, vector_of).ok().flatten()
}
