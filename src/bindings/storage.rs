//! Tensors over memory that is kept between steps: DLPack capsules whose destructor gives the block back.

use std::ffi::c_void;
use std::ptr::NonNull;

use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use super::dlpack::{NAME, Tensor};
use crate::array::Dtype;
use crate::storage::{self, Block};

/// `DLManagedTensor`, and behind it what it points to.
#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
    shape: Vec<i64>,
    block: Block,
}

/// Gives up the memory; called once, by whoever has it last, on any thread, with or without the GIL.
///
/// # Safety
/// `managed` is one of `kept_storage`'s, and nobody uses it any longer.
unsafe extern "C" fn give_up(managed: *mut Managed) {
    // SAFETY: made by `Box::into_raw`, and this is its last use.
    let managed = unsafe { Box::from_raw(managed) };
    storage::give(managed.block);
}

/// A capsule that nobody has consumed still owns its tensor.
unsafe extern "C" fn drop_capsule(capsule: *mut pyo3::ffi::PyObject) {
    // SAFETY: Python calls this with a capsule of `kept_storage`'s; a consumed one has another name.
    unsafe {
        if pyo3::ffi::PyCapsule_IsValid(capsule, NAME.as_ptr()) == 1 {
            give_up(pyo3::ffi::PyCapsule_GetPointer(capsule, NAME.as_ptr()).cast());
        }
    }
}

/// A contiguous array on the CPU with whatever contents, as a DLPack capsule to consume; given up, its memory is kept for
/// the next if no more than `limit` bytes are kept by then. `None` where the system has no memory to map.
#[pyfunction]
pub fn kept_storage<'py>(
    py: Python<'py>,
    dtype: &str,
    shape: Vec<usize>,
    limit: usize,
) -> PyResult<Option<Bound<'py, PyCapsule>>> {
    let dtype = Dtype::named(dtype)?;
    let bytes = shape
        .iter()
        .try_fold(dtype.size(), |bytes, size| bytes.checked_mul(*size));
    let Some(block) = bytes.and_then(|bytes| storage::take(bytes, limit)) else {
        return Ok(None);
    };
    let shape: Vec<i64> = shape.into_iter().map(|size| size as i64).collect();
    let managed = Box::new(Managed {
        tensor: Tensor::contiguous(block.address(), dtype, &shape),
        context: std::ptr::null_mut(),
        deleter: Some(give_up),
        shape,
        block,
    });
    let pointer = NonNull::from(Box::leak(managed)).cast();
    // SAFETY: the pointer stays valid until `give_up`, which may run on any thread.
    let made = unsafe {
        PyCapsule::new_with_pointer_and_destructor(py, pointer, NAME, Some(drop_capsule))
    };
    Ok(Some(made?))
}

/// Gives all kept memory that no array uses back to the system: how many bytes it was.
#[pyfunction]
pub fn release_storage() -> usize {
    storage::release()
}

/// How many bytes are kept that no array uses.
#[pyfunction]
pub fn storage_idle() -> usize {
    storage::idle()
}
