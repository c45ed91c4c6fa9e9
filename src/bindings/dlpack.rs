//! The structures of the DLPack standard (<https://dmlc.github.io/dlpack>), and how objects hand them over: in a capsule,
//! or, of PyTorch's tensors, through the C functions of their type.
//!
//! Capsules are those of version 0, which every exporter of unversioned capsules makes: PyTorch for each of its dtypes
//! and devices, NumPy for `curate`. (The `numpy` crate would be a second way, with nine more packages, for arrays that
//! speak this one.) A capsule is only looked at, never consumed: its owner's destructor stays in charge. Since 2.10
//! PyTorch has a table of C functions (`__dlpack_c_exchange_api__`), which make no capsule and take a third of the time.

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use pyo3::ffi::{PyObject, PyObject_TypeCheck};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyType};

use super::arrays::Place;
use crate::array::{ArgumentError, Array, Dtype, MAX_RANK};

pub(super) const NAME: &CStr = c"dltensor";
const EXCHANGE_NAME: &CStr = c"dlpack_exchange_api";
const EXCHANGE_VERSION: u32 = 1;

/// `DLTensor`, which is also how `DLManagedTensor` begins.
#[repr(C)]
pub(super) struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    pub rank: i32,
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

    pub fn place(&self) -> Place {
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
    pub fn array(&self) -> Result<Array, String> {
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

/// `DLPackDLTensorFromPyObjectNoSync`: 0, or -1 with a Python exception set.
type Describe = unsafe extern "C" fn(*mut PyObject, *mut Tensor) -> c_int;

/// `DLPackExchangeAPI`.
#[repr(C)]
struct Exchange {
    major: u32,
    minor: u32,
    older: *const c_void,
    allocate: *const c_void,
    export: *const c_void,
    import: *const c_void,
    /// Null where the library does not have it.
    describe: Option<Describe>,
    stream: *const c_void,
}

/// What PyTorch has for its tensors.
pub(super) struct Torch {
    tensor: Py<PyType>,
    parameter: Py<PyAny>,
    empty_like: Py<PyAny>,
    to_dlpack: Py<PyAny>,
    describe: Option<Describe>,
}

static TORCH: PyOnceLock<Torch> = PyOnceLock::new();

impl Torch {
    #[inline]
    pub fn get(py: Python<'_>) -> PyResult<&'static Torch> {
        TORCH.get_or_try_init(py, || Torch::find(py))
    }

    fn find(py: Python<'_>) -> PyResult<Torch> {
        let torch = py.import("torch")?;
        let tensor = torch.getattr("Tensor")?.cast_into::<PyType>()?;
        let utils = py.import("torch.utils.dlpack")?;
        Ok(Torch {
            describe: describe_of(&tensor),
            tensor: tensor.unbind(),
            parameter: torch.getattr("nn")?.getattr("Parameter")?.unbind(),
            empty_like: torch.getattr("empty_like")?.unbind(),
            to_dlpack: utils.getattr("to_dlpack")?.unbind(),
        })
    }

    /// Whether the object is a tensor.
    #[inline]
    pub fn is_tensor(&self, given: &Bound<'_, PyAny>) -> bool {
        // SAFETY: both are live. `isinstance` takes three times as long for what is none, and asks the metaclass.
        unsafe { PyObject_TypeCheck(given.as_ptr(), self.tensor.as_ptr().cast()) != 0 }
    }

    /// Whether the object is a tensor or a parameter of PyTorch's own, of no class that is derived from them.
    #[inline]
    pub fn is_plain(&self, given: &Bound<'_, PyAny>) -> bool {
        let kind = given.get_type_ptr().cast();
        kind == self.tensor.as_ptr() || kind == self.parameter.as_ptr()
    }

    /// A new tensor with the dtype and the shape of another.
    pub fn empty_like<'py>(&self, tensor: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.empty_like.bind(tensor.py()).call1((tensor,))
    }

    /// How many threads may work.
    pub fn threads(py: Python<'_>) -> PyResult<usize> {
        let threads = py.import("torch")?.call_method0("get_num_threads")?;
        threads.extract()
    }
}

/// The function of a type's table, if it has one of the version that is known here.
fn describe_of(kind: &Bound<'_, PyAny>) -> Option<Describe> {
    let capsule = kind.getattr("__dlpack_c_exchange_api__").ok()?;
    let capsule = capsule.cast_into::<PyCapsule>().ok()?;
    let table = capsule.pointer_checked(Some(EXCHANGE_NAME)).ok()?;
    // SAFETY: a capsule of this name holds a table that lives as long as the process. All versions begin with their
    // number, and the rest is looked at only if that is ours.
    let table = unsafe { table.cast::<Exchange>().as_ref() };
    table.describe.filter(|_| table.major == EXCHANGE_VERSION)
}

/// Applies `look` to what a capsule or a tensor describes, whose shape and strides need not live longer.
#[inline]
pub(super) fn look_at<T>(
    given: &Bound<'_, PyAny>,
    look: impl FnOnce(&Tensor) -> T,
) -> Result<T, ArgumentError> {
    if let Ok(capsule) = given.cast::<PyCapsule>() {
        return Ok(look(tensor_in(capsule)?));
    }
    let py = given.py();
    let value = |problem: PyErr| ArgumentError::Value(problem.value(py).to_string());
    let torch = Torch::get(py).map_err(value)?;
    if !torch.is_tensor(given) {
        return Err(ArgumentError::Type(format!(
            "expected an unused DLPack capsule, got {}",
            given.get_type()
        )));
    }
    let Some(describe) = torch.describe else {
        let capsule = torch.to_dlpack.bind(py).call1((given,)).map_err(value)?;
        return look_at(&capsule, look);
    };
    let mut tensor = MaybeUninit::uninit();
    // SAFETY: the function is that of the object's class or a base of it, and is called with the GIL.
    if unsafe { describe(given.as_ptr(), tensor.as_mut_ptr()) } != 0 {
        return Err(value(PyErr::fetch(py)));
    }
    // SAFETY: it has filled the structure, whose pointers are good until somebody else has a turn.
    Ok(look(unsafe { tensor.assume_init_ref() }))
}

fn tensor_in<'a>(capsule: &'a Bound<'_, PyCapsule>) -> Result<&'a Tensor, ArgumentError> {
    let pointer = capsule.pointer_checked(Some(NAME)).map_err(|_| {
        ArgumentError::Value("expected a DLPack capsule that nobody has consumed".into())
    })?;
    // SAFETY: a capsule of this name holds a `DLManagedTensor`.
    Ok(unsafe { pointer.cast::<Tensor>().as_ref() })
}
