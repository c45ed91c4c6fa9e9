//! Plain Rust over arrays of 32 bytes, for every machine: LLVM makes of it the vectors that the architecture always has
//! (SSE2, NEON). A mask holds all-ones or all-zeros words.

use half::{bf16, f16};

use super::{Isa, MAX_LANES, Memory, Vector};

pub struct Portable;

impl Isa for Portable {
    type F32 = Array<f32, 8>;
    type F64 = Array<f64, 4>;
}

#[derive(Clone, Copy)]
pub struct Array<R, const N: usize>([R; N]);

/// One value per lane, in a plain loop: of iterators and closures too little is inlined.
macro_rules! lanes {
    ($lanes:literal, $lane:ident, $value:expr) => {{
        let mut values = [Default::default(); $lanes];
        let mut $lane = 0;
        while $lane < $lanes {
            values[$lane] = $value;
            $lane += 1;
        }
        values
    }};
}

macro_rules! vector {
    ($real:ty, $word:ty, $lanes:literal) => {
        impl Vector for Array<$real, $lanes> {
            type Scalar = $real;
            type Mask = [$word; $lanes];
            const LANES: usize = $lanes;
            const FUSES: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

            #[inline(always)]
            fn splat(value: $real) -> Self {
                Self([value; $lanes])
            }

            #[inline(always)]
            fn write(self, lanes: &mut [$real; MAX_LANES]) {
                lanes[..$lanes].copy_from_slice(&self.0);
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                Self(lanes!($lanes, i, self.0[i] + other.0[i]))
            }

            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                Self(lanes!($lanes, i, self.0[i] - other.0[i]))
            }

            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                Self(lanes!($lanes, i, self.0[i] * other.0[i]))
            }

            #[inline(always)]
            fn div(self, other: Self) -> Self {
                Self(lanes!($lanes, i, self.0[i] / other.0[i]))
            }

            #[inline(always)]
            fn mul_add(self, factor: Self, addend: Self) -> Self {
                // Where the machine has no such instruction, `f32::mul_add` is a slow library function.
                if Self::FUSES {
                    Self(lanes!(
                        $lanes,
                        i,
                        self.0[i].mul_add(factor.0[i], addend.0[i])
                    ))
                } else {
                    Self(lanes!($lanes, i, self.0[i] * factor.0[i] + addend.0[i]))
                }
            }

            #[inline(always)]
            fn larger(self, other: Self) -> Self {
                Self(lanes!(
                    $lanes,
                    i,
                    if self.0[i] > other.0[i] {
                        self.0[i]
                    } else {
                        other.0[i]
                    }
                ))
            }

            #[inline(always)]
            fn smaller(self, other: Self) -> Self {
                Self(lanes!(
                    $lanes,
                    i,
                    if self.0[i] < other.0[i] {
                        self.0[i]
                    } else {
                        other.0[i]
                    }
                ))
            }

            #[inline(always)]
            fn abs(self) -> Self {
                Self(lanes!($lanes, i, self.0[i].abs()))
            }

            #[inline(always)]
            fn with_sign_of(self, other: Self) -> Self {
                Self(lanes!($lanes, i, self.0[i].copysign(other.0[i])))
            }

            #[inline(always)]
            fn two_to(shifted: Self) -> Self {
                const MANTISSA: u32 = <$real>::MANTISSA_DIGITS - 1;
                const ONE: $word = (1.0 as $real).to_bits();
                Self(lanes!(
                    $lanes,
                    i,
                    <$real>::from_bits(ONE.wrapping_add(shifted.0[i].to_bits() << MANTISSA))
                ))
            }

            #[inline(always)]
            fn less(self, other: Self) -> [$word; $lanes] {
                lanes!(
                    $lanes,
                    i,
                    <$word>::from(self.0[i] < other.0[i]).wrapping_neg()
                )
            }

            #[inline(always)]
            fn not_less(self, other: Self) -> [$word; $lanes] {
                lanes!(
                    $lanes,
                    i,
                    <$word>::from(self.0[i] < other.0[i]).wrapping_sub(1)
                )
            }

            #[inline(always)]
            fn not_equal(self, other: Self) -> [$word; $lanes] {
                lanes!(
                    $lanes,
                    i,
                    <$word>::from(self.0[i] != other.0[i]).wrapping_neg()
                )
            }

            #[inline(always)]
            fn bits(mask: [$word; $lanes]) -> u32 {
                let mut bits = 0;
                for (lane, word) in mask.into_iter().enumerate() {
                    bits |= u32::from(word != 0) << lane;
                }
                bits
            }

            #[inline(always)]
            fn any(mask: [$word; $lanes]) -> bool {
                let mut all = 0;
                for word in mask {
                    all |= word;
                }
                all != 0
            }

            #[inline(always)]
            fn or_zero(self, mask: [$word; $lanes]) -> Self {
                Self(lanes!(
                    $lanes,
                    i,
                    <$real>::from_bits(self.0[i].to_bits() & mask[i])
                ))
            }

            #[inline(always)]
            fn add_product_where(self, mask: [$word; $lanes], one: Self, other: Self) -> Self {
                self.add(one.mul(other).or_zero(mask))
            }
        }

        impl Memory<$real> for Array<$real, $lanes> {
            #[inline(always)]
            unsafe fn load(source: *const $real) -> Self {
                // SAFETY: the caller vouches for the elements.
                Self(unsafe { source.cast::<[$real; $lanes]>().read_unaligned() })
            }

            #[inline(always)]
            unsafe fn store(self, target: *mut $real) {
                // SAFETY: the caller vouches for the elements.
                unsafe { target.cast::<[$real; $lanes]>().write_unaligned(self.0) }
            }

            #[inline(always)]
            unsafe fn stream(self, target: *mut $real) {
                // SAFETY: passed on to the caller.
                unsafe { self.store(target) }
            }
        }
    };
}

vector!(f32, u32, 8);
vector!(f64, u64, 4);

/// f16 to f32 without branches: the exponent is re-based by a multiplication, which also normalises subnormals.
#[inline(always)]
fn widen_f16(half: u16) -> f32 {
    let half = u32::from(half);
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((254 - 15) << 23);
    let special = ((half & 0x7c00 == 0x7c00) as u32).wrapping_neg() & 0x7f80_0000;
    f32::from_bits(magnitude.to_bits() | special | (half & 0x8000) << 16)
}

#[inline(always)]
fn narrow_f16(value: f32) -> u16 {
    f16::from_f32(value).to_bits()
}

#[inline(always)]
fn widen_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// f32 to bf16, to nearest even; NaN stays NaN (and becomes quiet).
#[inline(always)]
fn narrow_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff).wrapping_add((bits >> 16) & 1);
    let nan = ((value.is_nan()) as u32).wrapping_neg();
    ((rounded & !nan | (bits | 0x0040_0000) & nan) >> 16) as u16
}

macro_rules! half_memory {
    ($half:ty, $widen:expr, $narrow:expr) => {
        impl Memory<$half> for Array<f32, 8> {
            #[inline(always)]
            unsafe fn load(source: *const $half) -> Self {
                // SAFETY: the caller vouches for the elements; both kinds of half are 16 bits wide.
                let halves = unsafe { source.cast::<[u16; 8]>().read_unaligned() };
                Self(lanes!(8, i, $widen(halves[i])))
            }

            #[inline(always)]
            unsafe fn store(self, target: *mut $half) {
                // SAFETY: the caller vouches for the elements; both kinds of half are 16 bits wide.
                unsafe {
                    target
                        .cast::<[u16; 8]>()
                        .write_unaligned(lanes!(8, i, $narrow(self.0[i])))
                }
            }

            #[inline(always)]
            unsafe fn stream(self, target: *mut $half) {
                // SAFETY: passed on to the caller.
                unsafe { Memory::<$half>::store(self, target) }
            }
        }
    };
}

half_memory!(bf16, widen_bf16, narrow_bf16);
half_memory!(f16, widen_f16, narrow_f16);
