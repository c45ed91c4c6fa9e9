//! One-dimensional strided arrays in somebody else's memory: the form in which columns and offsets arrive.

use half::{bf16, f16};

use crate::view::Dtype;

/// A column: element `i` stands `i · stride` elements from `address`.
#[derive(Clone, Copy, Debug)]
pub struct Array {
    address: usize,
    dtype: Dtype,
    len: usize,
    stride: isize,
    /// Whether this is a single number (no dimension) rather than an array of one.
    scalar: bool,
}

impl Array {
    /// An array; the error says what is wrong with it, without naming the argument.
    ///
    /// # Safety
    /// Until the last use of the result, the memory that it describes must be live, hold initialised values of this
    /// dtype, and, if it is written to, be written by nobody else.
    pub unsafe fn new(
        address: usize,
        dtype: Dtype,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self, String> {
        let (len, stride) = match (shape, strides) {
            ([], []) => (1, 0),
            (&[len], &[stride]) => (len, stride),
            _ => {
                return Err(format!(
                    "expected at most one dimension, got shape {shape:?} with strides {strides:?}"
                ));
            }
        };
        let bytes = len
            .saturating_sub(1)
            .checked_mul(stride.unsigned_abs())
            .and_then(|span| span.checked_add(1)?.checked_mul(dtype.size()));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(format!(
                "length {len} with stride {stride} exceeds the address space"
            ));
        }
        if address == 0 && len > 0 {
            return Err(format!("null address for {len} elements"));
        }
        Ok(Array {
            address,
            dtype,
            len,
            stride,
            scalar: shape.is_empty(),
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this is a single number without dimensions.
    pub fn is_scalar(&self) -> bool {
        self.scalar
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// `len` elements from element `start` on, all of which this array has.
    pub fn part(&self, start: usize, len: usize) -> Array {
        debug_assert!(start + len <= self.len);
        let bytes = start as isize * self.stride * self.dtype.size() as isize;
        Array {
            address: self.address.wrapping_add_signed(bytes),
            len,
            ..*self
        }
    }

    /// The elements as a slice, if they lie one behind the other, aligned, with this element type.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        let first = self.first_of::<T>(T::DTYPE)?;
        // SAFETY: `new`'s caller vouches for live memory of this dtype; contiguity and alignment were just checked.
        Some(unsafe { std::slice::from_raw_parts(first, self.len) })
    }

    /// As [`Array::as_slice`], of an i64 array.
    pub fn as_integers(&self) -> Option<&[i64]> {
        let first = self.first_of::<i64>(Dtype::I64)?;
        // SAFETY: as in `as_slice`.
        Some(unsafe { std::slice::from_raw_parts(first, self.len) })
    }

    /// As [`Array::as_integers`], to write to.
    ///
    /// # Safety
    /// Nothing else reads or writes the memory while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "the memory is somebody else's")]
    pub unsafe fn as_mut_integers(&self) -> Option<&mut [i64]> {
        let first = self.first_of::<i64>(Dtype::I64)?;
        // SAFETY: as in `as_slice`, and the caller's promise.
        Some(unsafe { std::slice::from_raw_parts_mut(first, self.len) })
    }

    /// The first of the elements, if they have this dtype, lie one behind the other and are aligned.
    fn first_of<T>(&self, dtype: Dtype) -> Option<*mut T> {
        let contiguous = self.stride == 1 || self.len <= 1;
        let aligned = self.address.is_multiple_of(align_of::<T>());
        if dtype != self.dtype || !contiguous || !aligned {
            return None;
        }
        if self.len == 0 {
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
        if self.stride == 1 {
            // Written out so that the compiler sees a unit stride.
            for (index, out) in out.iter_mut().enumerate().take(self.len) {
                // SAFETY: index < len, and `new`'s caller vouches for the memory; alignment is not assumed.
                *out = convert(unsafe { first.add(index).read_unaligned() });
            }
            return;
        }
        for (index, out) in out.iter_mut().enumerate().take(self.len) {
            // SAFETY: as above; the span of the strides was checked by `new`.
            *out = convert(unsafe { first.offset(index as isize * self.stride).read_unaligned() });
        }
    }

    /// The elements of an i64 array, one by one.
    pub fn integers(&self) -> impl Iterator<Item = i64> {
        debug_assert_eq!(self.dtype, Dtype::I64);
        let (first, stride) = (self.address as *const i64, self.stride);
        (0..self.len).map(move |index| {
            // SAFETY: index < len, and `new`'s caller vouches for the memory; alignment is not assumed.
            unsafe { first.offset(index as isize * stride).read_unaligned() }
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
        for (index, &value) in values.iter().enumerate().take(self.len) {
            // SAFETY: index < len, and `new`'s caller vouches for writable memory; alignment is not assumed.
            unsafe {
                first
                    .offset(index as isize * self.stride)
                    .write_unaligned(convert(value));
            }
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

    fn array(address: usize, dtype: Dtype, len: usize, stride: isize) -> Array {
        // SAFETY: the tests keep the memory alive.
        unsafe { Array::new(address, dtype, &[len], &[stride]) }.unwrap()
    }

    #[test]
    fn strides_and_dtypes_are_read() {
        let halves: Vec<bf16> = [1.0, 2.0, 3.0, 4.0].map(bf16::from_f64).to_vec();
        let mut out = [0.0; 2];
        array(halves.as_ptr() as usize + 6, Dtype::Bf16, 2, -2).read(&mut out);
        assert_eq!(out, [4.0, 2.0]);
        let flags = [0_u8, 7];
        array(flags.as_ptr() as usize, Dtype::Bool, 2, 1).read(&mut out);
        assert_eq!(out, [0.0, 1.0]);
        let integers = [-3_i64, 5];
        array(integers.as_ptr() as usize, Dtype::I64, 2, 1).read(&mut out);
        assert_eq!(out, [-3.0, 5.0]);
        let expanded = [0.5_f32];
        array(expanded.as_ptr() as usize, Dtype::F32, 2, 0).read(&mut out);
        assert_eq!(out, [0.5, 0.5]);
        let backwards = array(halves.as_ptr() as usize + 6, Dtype::Bf16, 4, -1);
        backwards.part(1, 2).read(&mut out);
        assert_eq!(out, [3.0, 2.0]);
    }

    #[test]
    fn writing_rounds_to_the_dtype() {
        let mut memory = [0.0_f32; 4];
        array(memory.as_mut_ptr() as usize, Dtype::F32, 2, 2).write(&[0.1, 3.0]);
        assert_eq!(memory, [0.1_f32, 0.0, 3.0, 0.0]);
    }

    #[test]
    fn nonsense_is_refused() {
        // SAFETY: none of these is made.
        unsafe {
            assert!(Array::new(8, Dtype::F32, &[2, 2], &[2, 1]).is_err());
            assert!(Array::new(0, Dtype::F32, &[2], &[1]).is_err());
            assert!(Array::new(8, Dtype::F64, &[1 << 40], &[1 << 40]).is_err());
            assert!(Array::new(0, Dtype::F32, &[0], &[1]).is_ok());
        }
    }
}
