//! Arrays from Python: memory in DLPack capsules, and shapes of what need not exist.
//!
//! The structures are those of the DLPack standard (<https://dmlc.github.io/dlpack>), version 0, which every exporter
//! of unversioned capsules follows: PyTorch for each of its dtypes and devices, NumPy for `curate`. (The `numpy` crate
//! would be a second way, with nine more packages, for arrays that speak this one.) A capsule is only looked at, never
//! consumed: its owner's destructor stays in charge.

use std::ffi::{CStr, c_void};
use std::fmt::Display;
use std::ptr;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyList};

use crate::array::{ArgumentError, Array, Dtype, MAX_RANK};

pub(super) const NAME: &CStr = c"dltensor";
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

/// `DLTensor`, which is also how `DLManagedTensor` begins.
#[repr(C)]
pub(super) struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    rank: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    /// Null where the elements lie one behind the other.
    strides: *const i64,
    byte_offset: u64,
}

impl Tensor {
    /// Elements on the CPU that lie one behind the other.
    pub fn contiguous(address: usize, dtype: Dtype, shape: &[i64]) -> Tensor {
        let (code, bits) = match dtype {
            Dtype::F16 => (2, 16),
            Dtype::Bf16 => (4, 16),
            Dtype::F32 => (2, 32),
            Dtype::F64 => (2, 64),
            Dtype::I64 => (0, 64),
            Dtype::Bool => (6, 8),
        };
        Tensor {
            data: address as *mut c_void,
            device_type: 1,
            device_id: 0,
            rank: shape.len() as i32,
            code,
            bits,
            lanes: 1,
            shape: shape.as_ptr(),
            strides: ptr::null(),
            byte_offset: 0,
        }
    }

    fn place(&self) -> Place {
        match self.device_type {
            1 | 3 => Place::Cpu,                   // 3: its pages are locked
            2 | 13 => Place::Cuda(self.device_id), // 13: managed
            other => Place::Elsewhere(other),
        }
    }

    fn dtype(&self) -> Result<Dtype, String> {
        match (self.code, self.bits, self.lanes) {
            (2, 16, 1) => Ok(Dtype::F16),
            (4, 16, 1) => Ok(Dtype::Bf16),
            (2, 32, 1) => Ok(Dtype::F32),
            (2, 64, 1) => Ok(Dtype::F64),
            (0, 64, 1) => Ok(Dtype::I64),
            (6, 8, 1) => Ok(Dtype::Bool),
            (code, bits, _) => Err(format!(
                "expected f16, bf16, f32, f64, i64 or bool, got DLPack type {code} of {bits} bits"
            )),
        }
    }

    #[inline]
    fn array(&self) -> Result<Array, String> {
        let rank = usize::try_from(self.rank).unwrap_or(usize::MAX);
        if rank > MAX_RANK {
            return Err(format!(
                "expected at most {MAX_RANK} dimensions, got {rank}"
            ));
        }
        let (mut shape, mut strides) = ([0; MAX_RANK], [0; MAX_RANK]);
        let mut step = 1;
        for dimension in (0..rank).rev() {
            // SAFETY: `shape` and, where there are any, `strides` have one value per dimension.
            let (size, stride) = unsafe {
                let stride = match self.strides.is_null() {
                    true => step,
                    false => *self.strides.add(dimension),
                };
                (*self.shape.add(dimension), stride)
            };
            step *= size;
            shape[dimension] = size as usize;
            strides[dimension] = stride as isize;
        }
        let address = (self.data as usize).wrapping_add(self.byte_offset as usize);
        // SAFETY: the capsule's maker vouches for the memory, and whoever makes a `Borrowed` of this keeps the capsule.
        unsafe { Array::new(address, self.dtype()?, &shape[..rank], &strides[..rank]) }
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

/// What a capsule describes, which lives as long as the capsule.
#[inline]
fn tensor_in<'a>(given: &'a Bound<'_, PyAny>) -> Result<&'a Tensor, ArgumentError> {
    let Ok(capsule) = given.cast::<PyCapsule>() else {
        return Err(ArgumentError::Type(format!(
            "expected an unused DLPack capsule, got {}",
            given.get_type()
        )));
    };
    let pointer = capsule.pointer_checked(Some(NAME)).map_err(|_| {
        ArgumentError::Value("expected a DLPack capsule that nobody has consumed".into())
    })?;
    // SAFETY: a capsule of this name holds a `DLManagedTensor`.
    Ok(unsafe { pointer.cast::<Tensor>().as_ref() })
}

impl<'py> Borrowed<'py> {
    fn new(given: &Bound<'py, PyAny>) -> Result<Self, ArgumentError> {
        let tensor = tensor_in(given)?;
        Ok(Borrowed {
            array: tensor.array().map_err(ArgumentError::Value)?,
            place: tensor.place(),
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
        let memory = || Ok(Described::Memory(Borrowed::new(&given)?));
        if given.is_instance_of::<PyCapsule>() {
            return memory(); // the common case, without the exception that the other attempt would make
        }
        let parts = given.extract::<(String, Vec<usize>, Vec<isize>)>();
        let Ok((dtype, shape, strides)) = parts else {
            return memory();
        };
        let dtype = Dtype::named(&dtype)?;
        // SAFETY: there is no memory; what runs takes no `Shape`, and a plan reads nothing.
        let array = unsafe { Array::new(NOWHERE, dtype, &shape, &strides) };
        Ok(Described::Shape(array.map_err(PyValueError::new_err)?))
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
        match tensor_in(&given) {
            Ok(tensor) if tensor.rank <= 1 && tensor.place() == Place::Cpu => {
                let array = tensor.array();
                arrays.push(array.map_err(|problem| {
                    PyValueError::new_err(format!("{argument}[{index}]: {problem}"))
                })?);
            }
            _ => {
                let argument = format!("{argument}[{index}]");
                let given = Borrowed::new(&given).map_err(|problem| problem.of(&argument))?;
                arrays.push(*vector(&argument, &given)?);
            }
        }
    }
    Ok(arrays)
}
