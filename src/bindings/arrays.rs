//! Arrays from Python: memory that DLPack describes, and shapes of what need not exist.

use std::fmt::Display;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::dlpack::{Tensor, Torch, look_at};
use crate::array::{ArgumentError, Array, Dtype};

/// What need not exist begins at an address that suits every kernel.
const NOWHERE: usize = 4096;

impl From<ArgumentError> for PyErr {
    fn from(error: ArgumentError) -> PyErr {
        match error {
            ArgumentError::Value(message) => PyValueError::new_err(message),
            ArgumentError::Type(message) => PyTypeError::new_err(message),
        }
    }
}

/// Where memory is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    Cpu,
    Cuda(i32),
    /// A DLPack device that nothing here computes on.
    Elsewhere(i32),
}

impl Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Cpu => formatter.write_str("the CPU"),
            Place::Cuda(device) => write!(formatter, "CUDA device {device}"),
            Place::Elsewhere(kind) => write!(formatter, "DLPack device {kind}"),
        }
    }
}

/// An array whose owner stays alive as long as this.
pub struct Borrowed<'py> {
    _owner: Bound<'py, PyAny>,
    array: Array,
    place: Place,
}

impl<'py> Borrowed<'py> {
    fn new(given: &Bound<'py, PyAny>) -> Result<Self, ArgumentError> {
        let (array, place) = look_at(given, |tensor| (tensor.array(), tensor.place()))?;
        Ok(Borrowed {
            array: array.map_err(ArgumentError::Value)?,
            place,
            _owner: given.clone(),
        })
    }

    /// The array, which must be at this place.
    pub fn at(&self, place: Place, argument: impl Display) -> Result<&Array, ArgumentError> {
        if self.place == place {
            return Ok(&self.array);
        }
        Err(ArgumentError::Value(format!(
            "{argument}: expected memory of {place}, got {}",
            self.place
        )))
    }

    /// The array, which must be on the CPU.
    pub fn cpu(&self, argument: impl Display) -> Result<&Array, ArgumentError> {
        self.at(Place::Cpu, argument)
    }
}

impl<'py> FromPyObject<'_, 'py> for Borrowed<'py> {
    type Error = PyErr;

    fn extract(given: pyo3::Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Borrowed::new(&given)?)
    }
}

/// An array, or the dtype, shape and strides of one that need not exist: enough to plan a launch.
pub enum Described<'py> {
    Memory(Borrowed<'py>),
    Shape(Array),
}

impl Described<'_> {
    /// The array, which must be memory of this place, if one is given.
    pub fn at(
        &self,
        place: Option<Place>,
        argument: impl Display,
    ) -> Result<&Array, ArgumentError> {
        match (self, place) {
            (Described::Memory(memory), Some(place)) => memory.at(place, argument),
            (Described::Memory(memory), None) => Ok(&memory.array),
            (Described::Shape(shape), None) => Ok(shape),
            (Described::Shape(_), Some(_)) => Err(ArgumentError::Type(format!(
                "{argument}: expected an unused DLPack capsule, got a shape"
            ))),
        }
    }

    /// What a plan needs to know.
    pub fn shape(&self) -> &Array {
        match self {
            Described::Memory(memory) => &memory.array,
            Described::Shape(shape) => shape,
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Described<'py> {
    type Error = PyErr;

    fn extract(given: pyo3::Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let parts = match given.cast::<PyTuple>() {
            Ok(tuple) => tuple.extract::<(String, Vec<usize>, Vec<isize>)>().ok(),
            Err(_) => None,
        };
        let Some((dtype, shape, strides)) = parts else {
            return Ok(Described::Memory(Borrowed::new(&given)?));
        };
        let dtype = Dtype::named(&dtype)?;
        // SAFETY: there is no memory; what runs takes no `Shape`, and a plan reads nothing.
        let array = unsafe { Array::new(NOWHERE, dtype, &shape, &strides) };
        Ok(Described::Shape(array.map_err(PyValueError::new_err)?))
    }
}

/// A number, where memory may be given as well: a tensor of one element would pass for one.
pub fn number<'a, 'py, T: FromPyObject<'a, 'py, Error = PyErr>>(
    given: &'a Bound<'py, PyAny>,
) -> PyResult<T> {
    match Torch::get(given.py())?.is_tensor(given) {
        true => Err(PyTypeError::new_err("expected a number, got a tensor")),
        false => given.extract(),
    }
}

/// [S, …], contiguous, as [S, N].
pub fn by_statistic(argument: &str, table: &Array) -> Result<Array, ArgumentError> {
    table.as_rows().ok_or_else(|| {
        ArgumentError::Value(format!(
            "{argument}: shape {:?} with strides {:?}, expected a contiguous array with one row per statistic",
            table.shape, table.strides
        ))
    })
}

/// An array of at most one dimension on the CPU.
pub fn vector<'a>(argument: impl Display, given: &'a Borrowed) -> Result<&'a Array, ArgumentError> {
    let array = given.cpu(&argument)?;
    match array.shape.len() {
        0 | 1 => Ok(array),
        rank => Err(ArgumentError::Value(format!(
            "{argument}: expected at most one dimension, got {rank}"
        ))),
    }
}

/// A list of arrays of at most one dimension on the CPU, which keeps their owners; an error names the position.
///
/// As `vector` of each, without what that costs: a program gets a dozen of them per call.
pub fn vectors(argument: &str, list: &Bound<'_, PyList>) -> PyResult<Vec<Array>> {
    let mut arrays = Vec::with_capacity(list.len());
    for (index, given) in list.iter().enumerate() {
        match look_at(&given, vector_of) {
            Ok(Some(array)) => arrays.push(array),
            _ => {
                let argument = format_args!("{argument}[{index}]");
                let given = Borrowed::new(&given).map_err(|problem| problem.of(argument))?;
                arrays.push(*vector(argument, &given)?);
            }
        }
    }
    Ok(arrays)
}

/// The same of one that is fit; `None` of others.
#[inline]
pub fn vector_of(tensor: &Tensor) -> Option<Array> {
    match tensor.rank <= 1 && tensor.place() == Place::Cpu {
        true => tensor.array().ok(),
        false => None,
    }
}
