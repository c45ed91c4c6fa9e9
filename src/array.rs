//! Arrays that somebody else owns: address, dtype, shape and strides. Offsets are counted in elements and are 64-bit.

use std::fmt;
use std::ops::Deref;

use half::{bf16, f16};

/// What is wrong with an argument: its value (shape, range, layout) or its type (dtype).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgumentError {
    Value(String),
    Type(String),
}

impl ArgumentError {
    /// The same, after the name of the argument.
    pub fn of(self, argument: impl fmt::Display) -> ArgumentError {
        match self {
            ArgumentError::Value(message) => ArgumentError::Value(format!("{argument}: {message}")),
            ArgumentError::Type(message) => ArgumentError::Type(format!("{argument}: {message}")),
        }
    }
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

    /// As [`Dtype::from_name`], with an error that says what is known.
    pub fn named(name: &str) -> Result<Dtype, ArgumentError> {
        Dtype::from_name(name).ok_or_else(|| {
            ArgumentError::Type(format!(
                "unknown dtype {name:?}, expected f16, bf16, f32, f64, i64 or bool"
            ))
        })
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

/// The most dimensions of an array.
pub const MAX_RANK: usize = 8;

/// One number per dimension, held in place: arrays are made for every call, and should not need the allocator.
#[derive(Clone, Copy)]
pub struct Dims<T> {
    rank: usize,
    values: [T; MAX_RANK],
}

impl<T: Copy + Default> Dims<T> {
    #[inline]
    fn new(given: &[T]) -> Option<Self> {
        let mut values = [T::default(); MAX_RANK];
        values.get_mut(..given.len())?.copy_from_slice(given);
        Some(Dims {
            rank: given.len(),
            values,
        })
    }
}

impl<T> Deref for Dims<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[..self.rank]
    }
}

impl<T> AsRef<[T]> for Dims<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<T: PartialEq, Other: AsRef<[T]>> PartialEq<Other> for Dims<T> {
    fn eq(&self, other: &Other) -> bool {
        **self == *other.as_ref()
    }
}

impl<'a, T> IntoIterator for &'a Dims<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: fmt::Debug> fmt::Debug for Dims<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

/// An array in somebody else's memory: element `i` stands `Σ i_d · strides_d` elements from `address`.
#[derive(Clone, Copy, Debug)]
pub struct Array {
    pub address: usize,
    pub dtype: Dtype,
    pub shape: Dims<usize>,
    /// In elements; zero (expanded) and negative strides are legal.
    pub strides: Dims<isize>,
}

impl Array {
    /// An array; the error says what is wrong with it, without naming the argument.
    ///
    /// # Safety
    /// Until the last time that it is read or written through the result, the memory that it describes must be live, hold
    /// initialised values of this dtype, and, if it is written to, be written by nobody else. (A launch that is only
    /// planned reads nothing.)
    #[inline]
    pub unsafe fn new(
        address: usize,
        dtype: Dtype,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Array, String> {
        if shape.len() != strides.len() {
            return Err(format!(
                "shape {shape:?} has {} dimensions, strides {strides:?} have {}",
                shape.len(),
                strides.len()
            ));
        }
        let (Some(sizes), Some(steps)) = (Dims::new(shape), Dims::new(strides)) else {
            return Err(format!(
                "expected at most {MAX_RANK} dimensions, got {}",
                shape.len()
            ));
        };
        let array = Array {
            address,
            dtype,
            shape: sizes,
            strides: steps,
        };
        if array.byte_span().is_none() {
            return Err(format!(
                "shape {shape:?} with strides {strides:?} exceeds the address space"
            ));
        }
        if address == 0 && !array.is_empty() {
            return Err(format!("null address for shape {shape:?}"));
        }
        Ok(array)
    }

    /// The elements [S, …], one behind the other, as [S, N]; none where they are not.
    pub fn as_rows(&self) -> Option<Array> {
        let &rows = self.shape.first()?;
        let width = self.shape[1..].iter().product();
        Some(Array {
            shape: Dims::new(&[rows, width])?,
            strides: Dims::new(&[width as isize, 1])?,
            ..*self
        })
        .filter(|_| self.is_contiguous())
    }

    /// Whether this is a single number without dimensions.
    pub fn is_scalar(&self) -> bool {
        self.shape.is_empty()
    }

    /// `len` elements from element `start` on, all of which this array of one dimension (or none) has.
    #[inline]
    pub fn part(&self, start: usize, len: usize) -> Array {
        debug_assert!(start + len <= self.len() && self.shape.len() <= 1);
        let bytes = self.step(start) * self.dtype.size() as isize;
        let mut part = *self;
        part.address = self.address.wrapping_add_signed(bytes);
        if let Some(size) = part.shape.values[..part.shape.rank].first_mut() {
            *size = len;
        }
        part
    }

    /// Offset, in elements, of the `index`-th element (row-major).
    #[inline]
    fn step(&self, index: usize) -> isize {
        match *self.strides {
            [] => 0,
            [stride] => index as isize * stride,
            _ => self.offset(index, self.shape.len()),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The largest distance in bytes between two elements, `None` where it does not fit `isize`.
    #[inline]
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
    #[inline]
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
    pub fn steps_like(&self, other: &Array) -> bool {
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

    /// The `index`-th element (row-major) of an array of i64.
    ///
    /// # Safety
    /// `index < self.len()`.
    pub unsafe fn read_i64(&self, index: usize) -> i64 {
        // SAFETY: the caller vouches for the memory; alignment is not assumed.
        unsafe {
            self.pointer::<i64>(self.offset(index, self.shape.len()))
                .read_unaligned()
        }
    }

    /// The `index`-th element (row-major) of an array of bool; any non-zero byte is true.
    ///
    /// # Safety
    /// As for [`Array::read_i64`].
    pub unsafe fn read_bool(&self, index: usize) -> bool {
        // SAFETY: the caller vouches for the memory.
        unsafe {
            self.pointer::<u8>(self.offset(index, self.shape.len()))
                .read()
                != 0
        }
    }

    /// The `index`-th element (row-major) of an array of floats.
    ///
    /// # Safety
    /// As for [`Array::read_i64`].
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

    /// The elements as a slice, if they lie one behind the other, aligned, with this element type.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        let first = self.first_of::<T>(T::DTYPE)?;
        // SAFETY: `new`'s caller vouches for live memory of this dtype; contiguity and alignment were just checked.
        Some(unsafe { std::slice::from_raw_parts(first, self.len()) })
    }

    /// As [`Array::as_slice`], of an i64 array.
    pub fn as_integers(&self) -> Option<&[i64]> {
        let first = self.first_of::<i64>(Dtype::I64)?;
        // SAFETY: as in `as_slice`.
        Some(unsafe { std::slice::from_raw_parts(first, self.len()) })
    }

    /// As [`Array::as_integers`], to write to.
    ///
    /// # Safety
    /// Nothing else reads or writes the memory while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "the memory is somebody else's")]
    pub unsafe fn as_mut_integers(&self) -> Option<&mut [i64]> {
        let first = self.first_of::<i64>(Dtype::I64)?;
        // SAFETY: as in `as_slice`, and the caller's promise.
        Some(unsafe { std::slice::from_raw_parts_mut(first, self.len()) })
    }

    /// The first of the elements, if they have this dtype, lie one behind the other and are aligned.
    fn first_of<T>(&self, dtype: Dtype) -> Option<*mut T> {
        let aligned = self.address.is_multiple_of(align_of::<T>());
        if dtype != self.dtype || !aligned || !self.is_contiguous() {
            return None;
        }
        if self.is_empty() {
            return Some(std::ptr::dangling_mut());
        }
        Some(self.address as *mut T)
    }

    /// Copies the elements into `out`, which has this array's length, as f64. Bools become 0 and 1.
    pub fn read(&self, out: &mut [f64]) {
        match self.dtype {
            Dtype::F64 => self.read_as(out, |x: f64| x),
            Dtype::F32 => self.read_as(out, |x: f32| f64::from(x)),
            Dtype::F16 => self.read_as(out, |x: f16| x.to_f64()),
            Dtype::Bf16 => self.read_as(out, |x: bf16| x.to_f64()),
            Dtype::I64 => self.read_as(out, |x: i64| x as f64),
            // Any non-zero byte counts as true.
            Dtype::Bool => self.read_as(out, |x: u8| f64::from(u8::from(x != 0))),
        }
    }

    #[inline]
    fn read_as<T: Copy>(&self, out: &mut [f64], convert: impl Fn(T) -> f64) {
        let first = self.address as *const T;
        let out = out.iter_mut().enumerate().take(self.len());
        // SAFETY: index < len, and `new`'s caller vouches for the memory, whose span `new` checked; alignment is not assumed.
        let read = |offset| convert(unsafe { first.offset(offset).read_unaligned() });
        if self.is_contiguous() {
            // Written out so that the compiler sees a unit stride.
            out.for_each(|(index, out)| *out = read(index as isize));
        } else {
            out.for_each(|(index, out)| *out = read(self.step(index)));
        }
    }

    /// The elements of an i64 array, one by one.
    pub fn integers(&self) -> impl Iterator<Item = i64> + '_ {
        debug_assert_eq!(self.dtype, Dtype::I64);
        let first = self.address as *const i64;
        (0..self.len()).map(move |index| {
            // SAFETY: index < len, and `new`'s caller vouches for the memory; alignment is not assumed.
            unsafe { first.offset(self.step(index)).read_unaligned() }
        })
    }

    /// Writes `values`, as many as this array has elements (or one for all), rounded to its dtype: f32 or f64.
    pub fn write(&self, values: &[f64]) {
        match self.dtype {
            Dtype::F64 => self.write_as(values, |x| x),
            Dtype::F32 => self.write_as(values, |x| x as f32),
            dtype => debug_assert!(false, "writing {dtype:?}"),
        }
    }

    #[inline]
    fn write_as<T: Copy>(&self, values: &[f64], convert: impl Fn(f64) -> T) {
        let first = self.address as *mut T;
        let values = values.iter().enumerate().take(self.len());
        // SAFETY: as in `read_as`, and the memory may be written.
        let write = |offset, value| unsafe { first.offset(offset).write_unaligned(convert(value)) };
        if self.is_contiguous() {
            values.for_each(|(index, &value)| write(index as isize, value));
        } else {
            values.for_each(|(index, &value)| write(self.step(index), value));
        }
    }
}

/// The float types that segments are reduced from.
pub trait Element: Copy + Send + Sync {
    /// The dtype of this type.
    const DTYPE: Dtype;
    /// The same number in f64.
    fn to_f64(self) -> f64;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Element for f64 {
    const DTYPE: Dtype = Dtype::F64;
    fn to_f64(self) -> f64 {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array<T>(address: *const T, dtype: Dtype, shape: &[usize], strides: &[isize]) -> Array {
        // SAFETY: the tests keep the memory alive, or read nothing.
        unsafe { Array::new(address as usize, dtype, shape, strides) }.unwrap()
    }

    fn described(shape: &[usize], strides: &[isize]) -> Array {
        array(4096 as *const f32, Dtype::F32, shape, strides)
    }

    #[test]
    fn offsets_follow_the_strides() {
        let transposed = described(&[2, 3, 5], &[5, 10, 1]);
        assert_eq!(transposed.offset(4, 2), 5 + 10);
        assert_eq!(transposed.coordinates(4, 2), vec![1, 1]);
        assert_eq!(described(&[3, 4], &[-4, 1]).offset(2, 1), -8);
        assert_eq!(described(&[], &[]).offset(0, 0), 0);
    }

    #[test]
    fn layouts_are_recognised() {
        assert!(described(&[2, 3], &[3, 1]).is_contiguous());
        assert!(described(&[1, 3], &[77, 1]).is_contiguous());
        assert!(!described(&[2, 3], &[4, 1]).is_contiguous());
        assert!(described(&[2, 3], &[4, 1]).is_disjoint());
        assert!(described(&[2, 3], &[-3, 1]).is_disjoint());
        assert!(!described(&[2, 3], &[0, 1]).is_disjoint());
        assert!(!described(&[2, 3], &[2, 1]).is_disjoint());
        assert!(described(&[1, 3], &[9, 1]).steps_like(&described(&[1, 3], &[3, 1])));
        assert!(!described(&[2, 3], &[9, 1]).steps_like(&described(&[2, 3], &[3, 1])));
        let rows = described(&[2, 3, 5], &[15, 5, 1]).as_rows().unwrap();
        assert_eq!((&*rows.shape, &*rows.strides), (&[2, 15][..], &[15, 1][..]));
        assert!(described(&[2, 3, 5], &[30, 5, 1]).as_rows().is_none());
    }

    #[test]
    fn strides_and_dtypes_are_read() {
        let halves: Vec<bf16> = [1.0, 2.0, 3.0, 4.0].map(bf16::from_f64).to_vec();
        let mut out = [0.0; 2];
        array(&halves[3], Dtype::Bf16, &[2], &[-2]).read(&mut out);
        assert_eq!(out, [4.0, 2.0]);
        array([0_u8, 7].as_ptr(), Dtype::Bool, &[2], &[1]).read(&mut out);
        assert_eq!(out, [0.0, 1.0]);
        array([-3_i64, 5].as_ptr(), Dtype::I64, &[2], &[1]).read(&mut out);
        assert_eq!(out, [-3.0, 5.0]);
        array(&0.5_f32, Dtype::F32, &[2], &[0]).read(&mut out);
        assert_eq!(out, [0.5, 0.5]);
        let backwards = array(&halves[3], Dtype::Bf16, &[4], &[-1]);
        backwards.part(1, 2).read(&mut out);
        assert_eq!(out, [3.0, 2.0]);
        let mut four = [0.0; 4];
        array(halves.as_ptr(), Dtype::Bf16, &[2, 2], &[1, 2]).read(&mut four);
        assert_eq!(four, [1.0, 3.0, 2.0, 4.0]);
    }

    #[test]
    fn writing_rounds_to_the_dtype() {
        let mut memory = [0.0_f32; 4];
        array(memory.as_mut_ptr(), Dtype::F32, &[2], &[2]).write(&[0.1, 3.0]);
        assert_eq!(memory, [0.1_f32, 0.0, 3.0, 0.0]);
    }

    #[test]
    fn nonsense_is_refused() {
        // SAFETY: none of these is read.
        let new = |address, shape: &[usize], strides: &[isize]| unsafe {
            Array::new(address, Dtype::F32, shape, strides)
        };
        let refused = |address, shape, strides| new(address, shape, strides).unwrap_err();
        assert!(refused(8, &[1, 2], &[1]).contains("2 dimensions"));
        assert!(refused(8, &[1; 9], &[1; 9]).contains("at most 8"));
        assert!(refused(8, &[1 << 40, 1 << 40], &[1 << 40, 1]).contains("address space"));
        assert!(refused(0, &[3], &[1]).contains("null"));
        assert!(new(0, &[0], &[1]).is_ok());
    }
}
