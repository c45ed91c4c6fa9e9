//! DLPack capsules: arrays described by whoever owns them, with one call instead of one per property.
//!
//! The structures are those of the DLPack standard (<https://dmlc.github.io/dlpack>), version 0, which every exporter
//! of unversioned capsules follows. A capsule is only looked at, never consumed: its owner's destructor stays in charge.

use std::ffi::{CStr, c_void};

use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::segments::array::Array;
use crate::view::Dtype;

const NAME: &CStr = c"dltensor";
const CPU: i32 = 1;

/// `DLTensor`, which is also how `DLManagedTensor` begins.
#[repr(C)]
struct Tensor {
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
    fn dtype(&self) -> Option<Dtype> {
        match (self.code, self.bits, self.lanes) {
            (2, 16, 1) => Some(Dtype::F16),
            (4, 16, 1) => Some(Dtype::Bf16),
            (2, 32, 1) => Some(Dtype::F32),
            (2, 64, 1) => Some(Dtype::F64),
            (0, 64, 1) => Some(Dtype::I64),
            (6, 8, 1) => Some(Dtype::Bool),
            _ => None,
        }
    }
}

/// The array in a capsule; the error says what is wrong with it, without naming the argument.
pub fn array_in(capsule: &Bound<'_, PyCapsule>) -> Result<Array, String> {
    let pointer = capsule
        .pointer_checked(Some(NAME))
        .map_err(|_| "expected a DLPack capsule that nobody has consumed".to_string())?;
    // SAFETY: a capsule of this name holds a `DLManagedTensor`, which lives as long as the capsule.
    let tensor = unsafe { pointer.cast::<Tensor>().as_ref() };
    if tensor.device_type != CPU {
        return Err(format!(
            "expected memory of the CPU, got DLPack device {}",
            tensor.device_type
        ));
    }
    let Some(dtype) = tensor.dtype() else {
        return Err(format!(
            "expected f16, bf16, f32, f64, i64 or bool, got DLPack type {} of {} bits",
            tensor.code, tensor.bits
        ));
    };
    let address = (tensor.data as usize).wrapping_add(tensor.byte_offset as usize);
    match tensor.rank {
        // SAFETY: the capsule's maker vouches for the memory, which the capsule keeps alive during the call.
        0 => unsafe { Array::new(address, dtype, &[], &[]) },
        1 => {
            // SAFETY: `shape` and, where there are any, `strides` have one value per dimension.
            let (len, stride) = unsafe { (*tensor.shape, tensor.strides.as_ref()) };
            let (len, stride) = (len as usize, stride.map_or(1, |&stride| stride as isize));
            // SAFETY: as above.
            unsafe { Array::new(address, dtype, &[len], &[stride]) }
        }
        rank => Err(format!("expected at most one dimension, got {rank}")),
    }
}
