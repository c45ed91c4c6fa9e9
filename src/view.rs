//! Borrowed typed views: the address, dtype, shape and strides of an array that somebody else owns.
//!
//! A view carries no lifetime: whoever makes one promises that the memory outlives its use. Offsets are counted in
//! elements and are 64-bit.

use std::fmt;

use half::{bf16, f16};

/// What is wrong with an argument: its value (shape, range, layout) or its type (dtype).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgumentError {
    Value(String),
    Type(String),
}

impl fmt::Display for ArgumentError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArgumentError::Value(message) | ArgumentError::Type(message) => {
                formatter.write_str(message)
            }
        }
    }
}

impl std::error::Error for ArgumentError {}

/// Element types that cross the border from Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F16,
    Bf16,
    F32,
    F64,
    I64,
    Bool,
}

impl Dtype {
    const NAMES: [(&'static str, Dtype); 6] = [
        ("f16", Dtype::F16),
        ("bf16", Dtype::Bf16),
        ("f32", Dtype::F32),
        ("f64", Dtype::F64),
        ("i64", Dtype::I64),
        ("bool", Dtype::Bool),
    ];

    pub fn from_name(name: &str) -> Option<Dtype> {
        Dtype::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, dtype)| *dtype)
    }

    pub fn name(self) -> &'static str {
        match self {
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::F32 => "f32",
            Dtype::F64 => "f64",
            Dtype::I64 => "i64",
            Dtype::Bool => "bool",
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bool => 1,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 => 4,
            Dtype::F64 | Dtype::I64 => 8,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64)
    }
}

/// An array in somebody else's memory: element `i` stands `Σ i_d · strides_d` elements from `address`.
#[derive(Clone, Debug)]
pub struct View {
    pub address: usize,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// In elements; zero (expanded) and negative strides are legal.
    pub strides: Vec<isize>,
}

impl View {
    /// A view named `argument` in errors; its rank, extent and address must make sense together.
    pub fn new(
        argument: &str,
        address: usize,
        dtype: &str,
        shape: Vec<usize>,
        strides: Vec<isize>,
    ) -> Result<View, ArgumentError> {
        let dtype = Dtype::from_name(dtype).ok_or_else(|| {
            ArgumentError::Type(format!(
                "{argument}: unknown dtype {dtype:?}, expected f16, bf16, f32, f64, i64 or bool"
            ))
        })?;
        if shape.len() != strides.len() {
            return Err(ArgumentError::Value(format!(
                "{argument}: shape {shape:?} has {} dimensions, strides {strides:?} have {}",
                shape.len(),
                strides.len()
            )));
        }
        let view = View {
            address,
            dtype,
            shape,
            strides,
        };
        if view.byte_span().is_none() {
            return Err(ArgumentError::Value(format!(
                "{argument}: shape {:?} with strides {:?} exceeds the address space",
                view.shape, view.strides
            )));
        }
        if address == 0 && !view.is_empty() {
            return Err(ArgumentError::Value(format!(
                "{argument}: null address for shape {:?}",
                view.shape
            )));
        }
        Ok(view)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The largest distance in bytes between two elements, `None` where it does not fit `isize`.
    fn byte_span(&self) -> Option<usize> {
        let mut elements: usize = 1;
        let mut span: usize = 0;
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            elements = elements.checked_mul(size)?;
            let reach = size.saturating_sub(1).checked_mul(stride.unsigned_abs())?;
            span = span.checked_add(reach)?;
        }
        let bytes = span
            .checked_add(1)?
            .max(elements)
            .checked_mul(self.dtype.size())?;
        (bytes <= isize::MAX as usize).then_some(bytes)
    }

    /// Whether the elements lie one behind the other in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size != 1 && stride != expected {
                return self.is_empty();
            }
            expected *= size as isize;
        }
        true
    }

    /// Whether elements of equal index stand at equal offsets in both, which are of the same shape.
    pub fn steps_like(&self, other: &View) -> bool {
        let strides = self.strides.iter().zip(&other.strides);
        self.shape
            .iter()
            .zip(strides)
            .all(|(&size, (own, others))| size <= 1 || own == others)
    }

    /// Whether no two elements share memory. Sufficient, not necessary: interleaved layouts that happen not to collide are refused.
    pub fn is_disjoint(&self) -> bool {
        let mut dims: Vec<(usize, usize)> = self
            .shape
            .iter()
            .zip(&self.strides)
            .filter(|(size, _)| **size > 1)
            .map(|(&size, &stride)| (stride.unsigned_abs(), size))
            .collect();
        dims.sort_unstable();
        let mut reach = 0;
        for (stride, size) in dims {
            if stride <= reach {
                return self.is_empty();
            }
            reach += stride * (size - 1);
        }
        true
    }

    /// Offset, in elements, of the `index`-th entry (row-major) over the first `rank` dimensions.
    pub fn offset(&self, index: usize, rank: usize) -> isize {
        let mut rest = index;
        let mut offset = 0;
        for (&size, &stride) in self.shape[..rank].iter().zip(&self.strides[..rank]).rev() {
            offset += (rest % size) as isize * stride;
            rest /= size;
        }
        offset
    }

    /// Coordinates of the `index`-th entry (row-major) over the first `rank` dimensions.
    pub fn coordinates(&self, index: usize, rank: usize) -> Vec<usize> {
        let mut rest = index;
        let mut coordinates = vec![0; rank];
        for (coordinate, &size) in coordinates.iter_mut().zip(&self.shape[..rank]).rev() {
            *coordinate = rest % size;
            rest /= size;
        }
        coordinates
    }

    /// Address of the element `offset` elements from the first.
    pub fn pointer<T>(&self, offset: isize) -> *mut T {
        debug_assert_eq!(size_of::<T>(), self.dtype.size());
        (self.address as *mut T).wrapping_offset(offset)
    }

    /// The `index`-th element (row-major) of a view of i64.
    ///
    /// # Safety
    /// The view describes live, initialised memory and `index < self.len()`.
    pub unsafe fn read_i64(&self, index: usize) -> i64 {
        // SAFETY: the caller vouches for the memory; alignment is not assumed.
        unsafe {
            self.pointer::<i64>(self.offset(index, self.shape.len()))
                .read_unaligned()
        }
    }

    /// The `index`-th element (row-major) of a view of bool; any non-zero byte is true.
    ///
    /// # Safety
    /// As for [`View::read_i64`].
    pub unsafe fn read_bool(&self, index: usize) -> bool {
        // SAFETY: the caller vouches for the memory.
        unsafe {
            self.pointer::<u8>(self.offset(index, self.shape.len()))
                .read()
                != 0
        }
    }

    /// The `index`-th element (row-major) of a view of floats.
    ///
    /// # Safety
    /// As for [`View::read_i64`].
    pub unsafe fn read_float(&self, index: usize) -> f64 {
        let offset = self.offset(index, self.shape.len());
        // SAFETY: the caller vouches for the memory; alignment is not assumed.
        unsafe {
            match self.dtype {
                Dtype::F16 => self.pointer::<f16>(offset).read_unaligned().to_f64(),
                Dtype::Bf16 => self.pointer::<bf16>(offset).read_unaligned().to_f64(),
                Dtype::F32 => self.pointer::<f32>(offset).read_unaligned().into(),
                Dtype::F64 => self.pointer::<f64>(offset).read_unaligned(),
                Dtype::I64 | Dtype::Bool => f64::NAN,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(shape: &[usize], strides: &[isize]) -> View {
        View::new("x", 4096, "f32", shape.to_vec(), strides.to_vec()).unwrap()
    }

    #[test]
    fn offsets_follow_the_strides() {
        let transposed = view(&[2, 3, 5], &[5, 10, 1]);
        assert_eq!(transposed.offset(4, 2), 5 + 10);
        assert_eq!(transposed.coordinates(4, 2), vec![1, 1]);
        assert_eq!(view(&[3, 4], &[-4, 1]).offset(2, 1), -8);
        assert_eq!(view(&[], &[]).offset(0, 0), 0);
    }

    #[test]
    fn layouts_are_recognised() {
        assert!(view(&[2, 3], &[3, 1]).is_contiguous());
        assert!(view(&[1, 3], &[77, 1]).is_contiguous());
        assert!(!view(&[2, 3], &[4, 1]).is_contiguous());
        assert!(view(&[2, 3], &[4, 1]).is_disjoint());
        assert!(view(&[2, 3], &[-3, 1]).is_disjoint());
        assert!(!view(&[2, 3], &[0, 1]).is_disjoint());
        assert!(!view(&[2, 3], &[2, 1]).is_disjoint());
        assert!(view(&[1, 3], &[9, 1]).steps_like(&view(&[1, 3], &[3, 1])));
        assert!(!view(&[2, 3], &[9, 1]).steps_like(&view(&[2, 3], &[3, 1])));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let unknown = View::new("logits", 8, "f8", vec![1], vec![1]).unwrap_err();
        assert!(unknown.to_string().starts_with("logits: unknown dtype"));
        let ranks = View::new("labels", 8, "i64", vec![1, 2], vec![1]).unwrap_err();
        assert!(ranks.to_string().contains("2 dimensions"));
        let huge =
            View::new("logits", 8, "f32", vec![1 << 40, 1 << 40], vec![1 << 40, 1]).unwrap_err();
        assert!(huge.to_string().contains("address space"));
        assert!(
            View::new("logits", 0, "f32", vec![3], vec![1])
                .unwrap_err()
                .to_string()
                .contains("null")
        );
        assert!(View::new("logits", 0, "f32", vec![0], vec![1]).is_ok());
    }
}
