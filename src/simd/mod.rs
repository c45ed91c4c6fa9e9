//! Vectors: the few operations that the row kernels are written in, and the instruction sets that provide them.
//!
//! A kernel is a [`Kernel`] whose `run` is generic over the instruction set; [`dispatch`] enters it under the matching
//! `target_feature`. Everything that handles vectors is `#[inline(always)]`, so that it ends up inside that function and
//! is compiled for its features; a call that is not inlined would still be right, but slow.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
pub mod products;

use std::ops::{Add, Div, Mul};
use std::sync::OnceLock;

use half::{bf16, f16};

use crate::array::ArgumentError;

/// No vector has more lanes than this.
pub const MAX_LANES: usize = 16;

/// A vector of floats, with the semantics of IEEE 754 unless said otherwise.
pub trait Vector: Memory<<Self as Vector>::Scalar> {
    type Scalar: Real;
    type Mask: Copy;
    const LANES: usize;
    /// Whether `mul_add` rounds once.
    const FUSES: bool = true;
    /// How many powers of two within an octave a table in registers provides.
    const STEPS: Self::Scalar = <Self::Scalar as Real>::ONE;
    /// Coefficients of (e^r − 1)/r on |r| ≤ log(2)/2/STEPS, constant first.
    const EXP_POLYNOMIAL: &'static [Self::Scalar] = <Self::Scalar as Real>::OCTAVE_POLYNOMIAL;

    fn splat(value: Self::Scalar) -> Self;
    /// Writes the lanes to the front of `lanes`.
    fn write(self, lanes: &mut [Self::Scalar; MAX_LANES]);

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self·factor + addend`
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger of the two; `other` where either is NaN.
    fn larger(self, other: Self) -> Self;
    /// The smaller of the two; `other` where either is NaN.
    fn smaller(self, other: Self) -> Self;
    fn abs(self) -> Self;
    /// Own magnitude, the sign of `other`.
    fn with_sign_of(self, other: Self) -> Self;
    /// 2^n, where the low bits of `shifted` are the integer n (see `rows::exp`); anything unless that is a normal number.
    fn two_to(shifted: Self) -> Self;
    /// 2^(n/STEPS), likewise.
    fn two_to_steps(shifted: Self) -> Self {
        Self::two_to(shifted)
    }
    /// Whether there is [`Vector::any_power`].
    const SCALES: bool = false;
    /// 2^n for any multiple n of 1/STEPS, infinite or 0 where a float has no such number; the low bits of `shifted` are those of
    /// n·STEPS and a multiple of STEPS.
    #[inline(always)]
    fn any_power(_shifted: Self, _n: Self) -> Self {
        unreachable!("a vector that scales says how")
    }
    /// At least 2^y and at most 1.5 times that, for y up to 100 from where 2^y is a normal number on; 0 or less, or next to
    /// nothing, below; anything for NaN.
    #[inline(always)]
    fn power_above(y: Self) -> Self {
        let splat = |value: f64| Self::splat(Self::Scalar::from_f64(value));
        let lowest = Self::splat(Self::Scalar::EXP_UNDERFLOW * Self::Scalar::LOG2_E);
        let shifted = lowest.larger(y).add(Self::splat(Self::Scalar::ROUNDER));
        // The square root of 2, and a little for rounding.
        Self::two_to(shifted).mul(splat(1.414_22))
    }

    /// False where either is NaN.
    fn less(self, other: Self) -> Self::Mask;
    /// True where either is NaN.
    fn not_less(self, other: Self) -> Self::Mask;
    /// True where either is NaN.
    fn not_equal(self, other: Self) -> Self::Mask;
    fn any(mask: Self::Mask) -> bool;
    /// A bit per lane, the first lowest.
    fn bits(mask: Self::Mask) -> u32;
    /// `self` where the mask is set, +0 elsewhere, even where `self` is NaN.
    fn or_zero(self, mask: Self::Mask) -> Self;
    /// `self + one·other` where the mask is set, `self` elsewhere, even where a factor is NaN.
    fn add_product_where(self, mask: Self::Mask, one: Self, other: Self) -> Self;
}

/// Loads and stores of as many `E`s as the vector has lanes, converting; no alignment is needed, rounding is to nearest even.
pub trait Memory<E>: Copy {
    /// # Safety
    /// as many elements can be read at `source`.
    unsafe fn load(source: *const E) -> Self;

    /// # Safety
    /// as many elements can be written at `target`.
    unsafe fn store(self, target: *mut E);

    /// A store that goes around the caches; [`fence`] must follow before another thread looks.
    ///
    /// # Safety
    /// As for `store`, and `target` is aligned to the size of all of them.
    unsafe fn stream(self, target: *mut E);
}

/// An element type of logits.
pub trait Element: Copy + Send + Sync + 'static {
    /// What arithmetic on it is done in.
    type Real: Real;
    type Vector<I: Isa>: Vector<Scalar = Self::Real> + Memory<Self>;
    const NEG_INFINITY: Self;
    const ZERO: Self;

    fn to_f64(self) -> f64;
    fn to_real(self) -> Self::Real;
    /// Rounded to nearest even, by way of `Real`.
    fn from_f64(value: f64) -> Self;
}

/// An element type that arithmetic is done in, with the constants of its exponential function.
pub trait Real:
    Element<Real = Self> + PartialOrd + Add<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    const ONE: Self;
    /// Added to a small number, leaves it rounded to an integer in the low bits.
    const ROUNDER: Self;
    const LOG2_E: Self;
    const MINUS_LN_2: Self;
    /// The same in two parts; products of the first with the integers that occur are exact.
    const MINUS_LN_2_PARTS: [Self; 2];
    /// Below this the result of exp would not be a normal number.
    const EXP_UNDERFLOW: Self;
    /// Coefficients of (e^r − 1)/r on |r| ≤ log(2)/2, constant first, which is 1.
    const OCTAVE_POLYNOMIAL: &'static [Self];
    /// From here on tanh is 1 and its derivative 0 to any precision, while e^(−2x) is still a normal number.
    const TANH_SATURATES: Self;

    fn from_integer(value: u32) -> Self;
}

macro_rules! element {
    ($element:ty, $real:ty, $vector:ident, $to_real:expr, $from_f64:expr) => {
        impl Element for $element {
            type Real = $real;
            type Vector<I: Isa> = I::$vector;
            const NEG_INFINITY: Self = <$element>::NEG_INFINITY;
            const ZERO: Self = <$element>::from_bits(0);

            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }

            #[inline(always)]
            fn to_real(self) -> $real {
                $to_real(self)
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                $from_f64(value)
            }
        }
    };
}

element!(f16, f32, F32, f16::to_f32, |x| f16::from_f32(x as f32));
element!(bf16, f32, F32, bf16::to_f32, |x| bf16::from_f32(x as f32));
element!(f32, f32, F32, f32::from, |x| x as f32);
element!(f64, f64, F64, f64::from, f64::from);

impl Real for f32 {
    const ONE: f32 = 1.0;
    const ROUNDER: f32 = 12_582_912.0; // 1.5·2^23
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const MINUS_LN_2: f32 = -std::f32::consts::LN_2;
    const MINUS_LN_2_PARTS: [f32; 2] = [-355.0 / 512.0, 2.121_944_4e-4];
    const EXP_UNDERFLOW: f32 = -87.336_54;
    // Degree 6 in all: minimax error 3.1e-9 of e^r.
    const OCTAVE_POLYNOMIAL: &'static [f32] = &[
        1.0,
        0.499_999_94,
        0.166_665_21,
        0.041_668_39,
        0.008_368_717,
        0.001_381_459_9,
    ];
    const TANH_SATURATES: f32 = 40.0;

    #[inline(always)]
    fn from_integer(value: u32) -> f32 {
        value as f32
    }
}

impl Real for f64 {
    const ONE: f64 = 1.0;
    const ROUNDER: f64 = 6_755_399_441_055_744.0; // 1.5·2^52
    const LOG2_E: f64 = std::f64::consts::LOG2_E;
    const MINUS_LN_2: f64 = -std::f64::consts::LN_2;
    const MINUS_LN_2_PARTS: [f64; 2] = [-0.693_147_180_369_123_8, -1.908_214_929_270_587_7e-10];
    const EXP_UNDERFLOW: f64 = -708.396_418_532_264;
    // Degree 11 in all: minimax error 3.6e-18 of e^r.
    const OCTAVE_POLYNOMIAL: &'static [f64] = &[
        1.0,
        0.500_000_000_000_001_1,
        0.166_666_666_666_664_13,
        0.041_666_666_666_530_155,
        0.008_333_333_333_494_461,
        0.001_388_888_894_363_011_4,
        0.000_198_412_695_065_786_88,
        0.000_024_801_493_098_906_55,
        2.755_758_637_384_016_5e-6,
        2.763_024_837_921_144e-7,
        2.500_006_160_283_566_6e-8,
    ];
    const TANH_SATURATES: f64 = 300.0;

    #[inline(always)]
    fn from_integer(value: u32) -> f64 {
        value.into()
    }
}

/// 2^(j/N) for j = 0, 1, …, given 2^(1/N).
#[cfg(target_arch = "x86_64")]
const fn powers<const N: usize>(root: f64) -> [f32; N] {
    let mut powers = [0.0; N];
    let mut power = 1.0;
    let mut j = 0;
    while j < N {
        powers[j] = power as f32;
        power *= root;
        j += 1;
    }
    powers
}

/// 2^(j/N) for j = 0, 1, …, given 2^(1/N); as bits, less what the j in a step's number n adds to the mantissa where
/// n is added in at the place that makes it octaves.
#[cfg(target_arch = "x86_64")]
const fn octave<const N: usize>(root: f64) -> [i32; N] {
    let powers: [f32; N] = powers(root);
    let mut bits = [0; N];
    let mut j = 0;
    while j < N {
        bits[j] = powers[j].to_bits() as i32 - ((j as i32) << (23 - N.trailing_zeros()));
        j += 1;
    }
    bits
}

/// An instruction set.
pub trait Isa {
    type F32: Vector<Scalar = f32> + Memory<f16> + Memory<bf16> + Memory<f32>;
    type F64: Vector<Scalar = f64> + Memory<f64>;
}

/// Work that is compiled once per instruction set. `run` is to be `#[inline(always)]`.
pub trait Kernel {
    type Output;

    fn run<I: Isa>(self) -> Self::Output;
}

/// The instruction sets there are, by rising width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust over small arrays, which the compiler turns into the vectors that every machine of the architecture has.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with dot products of bf16: for machines where these are faster than products of f32.
    Avx512Bf16,
    /// AVX-512 with matrix tiles of bf16.
    Amx,
}

impl Level {
    const ALL: [Level; 5] = [
        Level::Portable,
        Level::Avx2,
        Level::Avx512,
        Level::Avx512Bf16,
        Level::Amx,
    ];

    /// The name that Python sees.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable if cfg!(target_arch = "aarch64") => "neon",
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512bf16",
            Level::Amx => "amx",
        }
    }

    /// Whether this machine has it.
    #[cfg(target_arch = "x86_64")]
    fn is_here(self) -> bool {
        match self {
            Level::Portable => true,
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("popcnt")
            }
            Level::Avx512 => {
                Level::Avx2.is_here()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Level::Avx512Bf16 => Level::Avx512.is_here() && products::dots::available(),
            Level::Amx => Level::Avx512.is_here() && products::tiles::available(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_here(self) -> bool {
        self == Level::Portable
    }

    /// All that this machine has, the least first.
    pub fn available() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|level| level.is_here())
    }

    /// The best that this machine has.
    fn detect() -> Level {
        let best = Level::available().last().unwrap_or(Level::Portable);
        #[cfg(target_arch = "x86_64")]
        if best == Level::Avx512Bf16 && !products::dots::fast() {
            return Level::Avx512;
        }
        best
    }

    /// The level in use: the widest there is, or the one that the environment variable `PREFUSE_SIMD` names.
    pub fn current() -> Result<Level, ArgumentError> {
        static CURRENT: OnceLock<Result<Level, ArgumentError>> = OnceLock::new();
        CURRENT
            .get_or_init(|| Level::choose(std::env::var("PREFUSE_SIMD").ok().as_deref()))
            .clone()
    }

    fn choose(wanted: Option<&str>) -> Result<Level, ArgumentError> {
        let Some(wanted) = wanted.filter(|name| !name.is_empty()) else {
            return Ok(Level::detect());
        };
        Level::available()
            .find(|level| level.name() == wanted)
            .ok_or_else(|| {
                let here: Vec<&str> = Level::available().map(Level::name).collect();
                ArgumentError::Value(format!(
                    "PREFUSE_SIMD: {wanted:?}, expected one of {} on this machine",
                    here.join(", ")
                ))
            })
    }
}

/// Runs a kernel at a level that this machine has: one that [`Level::current`] returned.
#[inline]
pub fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Output {
    match level {
        // SAFETY: a level above portable comes from `detect`, so the machine has its features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 | Level::Amx => unsafe { run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { run_avx2(kernel) },
        _ => kernel.run::<portable::Portable>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,popcnt")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<avx512::Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<avx2::Avx2>()
}

/// Asks for the cache line of `address`, which need not exist: into the first level, or not `NEAR`, the second.
#[inline(always)]
pub fn prefetch<const NEAR: bool, E>(address: *const E) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address whatever does nothing but warm the cache; SSE is there on every x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if NEAR {
            _mm_prefetch::<_MM_HINT_T0>(address.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T1>(address.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The sum of all lanes, in f64 and in an order of its own: halves are added until one lane is left.
#[inline(always)]
pub fn total<V: Vector, const N: usize>(vectors: [V; N]) -> f64 {
    let mut sums = [0.0; MAX_LANES];
    for vector in vectors {
        let mut lanes = [V::Scalar::ZERO; MAX_LANES];
        vector.write(&mut lanes);
        for lane in 0..V::LANES {
            sums[lane] += lanes[lane].to_f64();
        }
    }
    let mut half = MAX_LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// Makes streamed stores visible before whatever is written next.
#[inline]
pub fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is there on every x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There and back again: element type `E` to a vector, and to `E` or to f32.
    struct Widen<'a, E> {
        elements: &'a [E],
    }

    impl<E: Element<Real = f32>> Kernel for Widen<'_, E> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<I: Isa>(self) -> Vec<f32> {
            let mut wide = Vec::new();
            for elements in self.elements.chunks_exact(MAX_LANES) {
                let mut lanes = [0.0; MAX_LANES];
                for start in (0..MAX_LANES).step_by(<E::Vector<I> as Vector>::LANES) {
                    // SAFETY: MAX_LANES is a multiple of the number of lanes.
                    let vector: E::Vector<I> =
                        unsafe { Memory::<E>::load(elements[start..].as_ptr()) };
                    vector.write(&mut lanes);
                    wide.extend_from_slice(&lanes[..<E::Vector<I> as Vector>::LANES]);
                }
            }
            wide
        }
    }

    struct Narrow<'a, E> {
        values: &'a [f32],
        narrow: &'a mut [E],
    }

    impl<E: Element<Real = f32>> Kernel for Narrow<'_, E> {
        type Output = ();

        #[inline(always)]
        fn run<I: Isa>(self) {
            for start in (0..self.values.len()).step_by(<E::Vector<I> as Vector>::LANES) {
                // SAFETY: the number of values is a multiple of the number of lanes.
                unsafe {
                    let vector: E::Vector<I> = Memory::<f32>::load(self.values[start..].as_ptr());
                    Memory::<E>::store(vector, self.narrow[start..].as_mut_ptr());
                }
            }
        }
    }

    fn same(one: f32, other: f32) -> bool {
        one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan()
    }

    fn check_conversions<E: Element<Real = f32>>(all: Vec<E>) {
        // Floats of every magnitude, among them ties, subnormals, infinities and NaNs with low payload bits.
        let special = [
            0x7fff_ffff,
            0xffff_ffff,
            0x7f80_0001,
            0x7f80_0000,
            0xff80_0000,
            0x3f80_8000,
            0x3f81_8000,
            1,
        ];
        let spread = (0..1 << 16).map(|i: u32| i.wrapping_mul(65_521).wrapping_add(i << 16));
        let values: Vec<f32> = special
            .into_iter()
            .chain(spread)
            .chain([0; 8])
            .map(f32::from_bits)
            .collect();
        for level in Level::available() {
            for (wide, element) in dispatch(level, Widen { elements: &all }).iter().zip(&all) {
                assert!(
                    same(*wide, element.to_real()),
                    "{level:?}: {wide} is not {}",
                    element.to_real()
                );
            }
            let mut narrow = vec![E::ZERO; values.len()];
            dispatch(
                level,
                Narrow {
                    values: &values,
                    narrow: &mut narrow,
                },
            );
            for (narrow, value) in narrow.iter().zip(&values) {
                let expected = E::from_f64(f64::from(*value)).to_real();
                assert!(
                    same(narrow.to_real(), expected),
                    "{level:?}: {value} gave {}",
                    narrow.to_real()
                );
            }
        }
    }

    #[test]
    fn bf16_conversions_agree_with_the_reference() {
        check_conversions((0..=u16::MAX).map(bf16::from_bits).collect());
    }

    #[test]
    fn f16_conversions_agree_with_the_reference() {
        check_conversions((0..=u16::MAX).map(f16::from_bits).collect());
    }

    #[test]
    fn a_lower_level_can_be_chosen_by_name() {
        assert_eq!(Level::choose(None), Ok(Level::detect()));
        assert_eq!(Level::choose(Some("")), Ok(Level::detect()));
        assert_eq!(
            Level::choose(Some(Level::Portable.name())),
            Ok(Level::Portable)
        );
        assert!(
            Level::choose(Some("sse9"))
                .unwrap_err()
                .to_string()
                .starts_with("PREFUSE_SIMD: \"sse9\"")
        );
    }
}
