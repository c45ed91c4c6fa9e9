//! Squared distances ‖a − b‖² between the samples of two batches, and their gradient 2·g·(a − b).
//!
//! A sample is a row of a matrix [B, D], its elements one behind the other; the two matrices may differ in dtype, except
//! that f64 goes with f64 only. Traffic: each element is read once; backward writes each element of the gradient once.
//! Arithmetic is that of the wider dtype, at least f32; sums of [`CHUNK`] elements meet in f64 and in order, so a sample
//! gives the same bits in any company and on any number of threads.

pub mod cpu;
pub mod cuda;
mod pass;
#[cfg(test)]
mod tests;

use crate::array::{ArgumentError, Array, Dtype};

/// Elements that are summed in the arithmetic's own precision.
pub const CHUNK: usize = 8192;

/// The two matrices of a call, which fit.
pub struct Samples {
    first: Array,
    second: Array,
}

impl Samples {
    /// Two matrices of one shape, of dense rows.
    pub fn new(first: Array, second: Array) -> Result<Samples, ArgumentError> {
        for (name, view) in [("first", &first), ("second", &second)] {
            if view.shape.len() != 2 || view.shape[1] > 1 && view.strides[1] != 1 {
                return Err(ArgumentError::Value(format!(
                    "{name}: shape {:?} with strides {:?}, expected a matrix of dense rows",
                    view.shape, view.strides
                )));
            }
            if matches!(view.dtype, Dtype::I64 | Dtype::Bool) {
                return Err(ArgumentError::Type(format!(
                    "{name}: dtype {}, expected f16, bf16, f32 or f64",
                    view.dtype.name()
                )));
            }
        }
        if first.shape != second.shape {
            return Err(ArgumentError::Value(format!(
                "second: shape {:?}, expected {:?} like the first",
                second.shape, first.shape
            )));
        }
        if (first.dtype == Dtype::F64) != (second.dtype == Dtype::F64) {
            return Err(ArgumentError::Type(format!(
                "second: dtype {}, expected f64 with f64 only, the first is {}",
                second.dtype.name(),
                first.dtype.name()
            )));
        }
        Ok(Samples { first, second })
    }

    /// How many samples there are.
    pub fn count(&self) -> usize {
        self.first.shape[0]
    }

    /// How many elements a sample has.
    pub fn size(&self) -> usize {
        self.first.shape[1]
    }

    /// Chunks of a sample.
    pub fn parts(&self) -> usize {
        self.size().div_ceil(CHUNK)
    }

    /// The dtype of sums.
    fn result(&self) -> Dtype {
        match self.first.dtype {
            Dtype::F64 => Dtype::F64,
            _ => Dtype::F32,
        }
    }

    /// Checks a vector of one number per sample, in the dtype of sums.
    fn check_vector(&self, name: &str, view: &Array) -> Result<(), ArgumentError> {
        if view.shape != [self.count()] || !view.is_contiguous() || view.dtype != self.result() {
            return Err(ArgumentError::Value(format!(
                "{name}: dtype {}, shape {:?} with strides {:?}, expected a contiguous vector of {} {}",
                view.dtype.name(),
                view.shape,
                view.strides,
                self.count(),
                self.result().name()
            )));
        }
        Ok(())
    }

    /// Checks a call for the sums of squares.
    fn check_forward(&self, out: &Array) -> Result<(), ArgumentError> {
        self.check_vector("out", out)
    }

    /// Checks a call for the gradient towards the first matrix.
    fn check_backward(&self, grads: &Array, gradient: &Array) -> Result<(), ArgumentError> {
        self.check_vector("grads", grads)?;
        if gradient.shape != self.first.shape
            || !gradient.is_contiguous()
            || gradient.dtype != self.first.dtype
        {
            return Err(ArgumentError::Value(format!(
                "gradient: dtype {}, shape {:?} with strides {:?}, expected a contiguous one like the first, {} of {:?}",
                gradient.dtype.name(),
                gradient.shape,
                gradient.strides,
                self.first.dtype.name(),
                self.first.shape
            )));
        }
        Ok(())
    }
}
