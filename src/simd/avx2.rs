//! AVX2 with FMA and F16C: 8 f32 or 4 f64. A mask is a vector of all-ones or all-zeros lanes.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Isa, MAX_LANES, Memory, Vector, octave};

pub struct Avx2;

impl Isa for Avx2 {
    type F32 = F32x8;
    type F64 = F64x4;
}

#[derive(Clone, Copy)]
pub struct F32x8(__m256);

#[derive(Clone, Copy)]
pub struct F64x4(__m256d);

const STEPS: usize = 8;
const OCTAVE: [i32; STEPS] = octave(1.090_507_732_665_257_7);

/// An expression of intrinsics.
macro_rules! x86 {
    ($body:expr) => {
        // SAFETY: these vectors are made under `dispatch` only, after the features were detected.
        unsafe { $body }
    };
}

impl Vector for F32x8 {
    type Scalar = f32;
    type Mask = __m256;
    const LANES: usize = 8;
    const STEPS: f32 = STEPS as f32;
    // Minimax error 2.5e-8 of e^r.
    const EXP_POLYNOMIAL: &'static [f32] = &[1.0, 0.500_064_85, 0.166_642_96];

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(x86!(_mm256_set1_ps(value)))
    }

    #[inline(always)]
    fn write(self, lanes: &mut [f32; MAX_LANES]) {
        x86!(_mm256_storeu_ps(lanes.as_mut_ptr(), self.0))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(x86!(_mm256_add_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(x86!(_mm256_sub_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(x86!(_mm256_mul_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(x86!(_mm256_div_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(x86!(_mm256_fmadd_ps(self.0, factor.0, addend.0)))
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        Self(x86!(_mm256_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        Self(x86!(_mm256_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(x86!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)))
    }

    #[inline(always)]
    fn with_sign_of(self, other: Self) -> Self {
        x86!({
            let sign = _mm256_set1_ps(-0.0);
            Self(_mm256_or_ps(
                _mm256_andnot_ps(sign, self.0),
                _mm256_and_ps(sign, other.0),
            ))
        })
    }

    #[inline(always)]
    fn two_to(shifted: Self) -> Self {
        x86!({
            let exponents = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted.0));
            let one = _mm256_castps_si256(_mm256_set1_ps(1.0));
            Self(_mm256_castsi256_ps(_mm256_add_epi32(one, exponents)))
        })
    }

    #[inline(always)]
    fn power_above(y: Self) -> Self {
        // With the fraction of y as mantissa: 1 + f is at least 2^f, and at most 1.0615 times that.
        const MANTISSA: f32 = (1 << 23) as f32;
        x86!({
            let scale = _mm256_set1_ps(MANTISSA);
            let bits = _mm256_fmadd_ps(y.0, scale, _mm256_set1_ps(127.0 * MANTISSA));
            Self(_mm256_castsi256_ps(_mm256_cvtps_epi32(bits)))
        })
    }

    #[inline(always)]
    fn two_to_steps(shifted: Self) -> Self {
        x86!({
            let steps = _mm256_castps_si256(shifted.0);
            let octave = _mm256_loadu_si256(OCTAVE.as_ptr().cast());
            let power = _mm256_permutevar8x32_epi32(octave, steps);
            let octaves = _mm256_slli_epi32::<{ 23 - STEPS.trailing_zeros() as i32 }>(steps);
            Self(_mm256_castsi256_ps(_mm256_add_epi32(power, octaves)))
        })
    }

    #[inline(always)]
    fn less(self, other: Self) -> __m256 {
        x86!(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0))
    }

    #[inline(always)]
    fn not_less(self, other: Self) -> __m256 {
        x86!(_mm256_cmp_ps::<_CMP_NLT_UQ>(self.0, other.0))
    }

    #[inline(always)]
    fn not_equal(self, other: Self) -> __m256 {
        x86!(_mm256_cmp_ps::<_CMP_NEQ_UQ>(self.0, other.0))
    }

    #[inline(always)]
    fn any(mask: __m256) -> bool {
        x86!(_mm256_movemask_ps(mask) != 0)
    }

    #[inline(always)]
    fn bits(mask: __m256) -> u32 {
        x86!(_mm256_movemask_ps(mask)) as u32
    }

    #[inline(always)]
    fn or_zero(self, mask: __m256) -> Self {
        Self(x86!(_mm256_and_ps(mask, self.0)))
    }

    #[inline(always)]
    fn add_product_where(self, mask: __m256, one: Self, other: Self) -> Self {
        let sum = one.mul_add(other, self);
        Self(x86!(_mm256_blendv_ps(self.0, sum.0, mask)))
    }
}

impl Memory<f32> for F32x8 {
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        Self(x86!(_mm256_loadu_ps(source)))
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        x86!(_mm256_storeu_ps(target, self.0))
    }

    #[inline(always)]
    unsafe fn stream(self, target: *mut f32) {
        x86!(_mm256_stream_ps(target, self.0))
    }
}

impl F32x8 {
    /// The upper halves of the lanes after rounding to nearest even; NaN stays NaN (and becomes quiet).
    #[inline(always)]
    fn to_bf16(self) -> __m128i {
        x86!({
            let bits = _mm256_castps_si256(self.0);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let upper = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            _mm_packus_epi32(
                _mm256_castsi256_si128(upper),
                _mm256_extracti128_si256::<1>(upper),
            )
        })
    }
}

impl Memory<bf16> for F32x8 {
    #[inline(always)]
    unsafe fn load(source: *const bf16) -> Self {
        x86!({
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(source.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves)))
        })
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut bf16) {
        x86!(_mm_storeu_si128(target.cast(), self.to_bf16()))
    }

    #[inline(always)]
    unsafe fn stream(self, target: *mut bf16) {
        x86!(_mm_stream_si128(target.cast(), self.to_bf16()))
    }
}

impl Memory<f16> for F32x8 {
    #[inline(always)]
    unsafe fn load(source: *const f16) -> Self {
        Self(x86!(_mm256_cvtph_ps(_mm_loadu_si128(source.cast()))))
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f16) {
        x86!(_mm_storeu_si128(
            target.cast(),
            _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)
        ))
    }

    #[inline(always)]
    unsafe fn stream(self, target: *mut f16) {
        x86!(_mm_stream_si128(
            target.cast(),
            _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)
        ))
    }
}

impl Vector for F64x4 {
    type Scalar = f64;
    type Mask = __m256d;
    const LANES: usize = 4;

    #[inline(always)]
    fn splat(value: f64) -> Self {
        Self(x86!(_mm256_set1_pd(value)))
    }

    #[inline(always)]
    fn write(self, lanes: &mut [f64; MAX_LANES]) {
        x86!(_mm256_storeu_pd(lanes.as_mut_ptr(), self.0))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(x86!(_mm256_add_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(x86!(_mm256_sub_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(x86!(_mm256_mul_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(x86!(_mm256_div_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(x86!(_mm256_fmadd_pd(self.0, factor.0, addend.0)))
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        Self(x86!(_mm256_max_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        Self(x86!(_mm256_min_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(x86!(_mm256_andnot_pd(_mm256_set1_pd(-0.0), self.0)))
    }

    #[inline(always)]
    fn with_sign_of(self, other: Self) -> Self {
        x86!({
            let sign = _mm256_set1_pd(-0.0);
            Self(_mm256_or_pd(
                _mm256_andnot_pd(sign, self.0),
                _mm256_and_pd(sign, other.0),
            ))
        })
    }

    #[inline(always)]
    fn two_to(shifted: Self) -> Self {
        x86!({
            let exponents = _mm256_slli_epi64::<52>(_mm256_castpd_si256(shifted.0));
            let one = _mm256_castpd_si256(_mm256_set1_pd(1.0));
            Self(_mm256_castsi256_pd(_mm256_add_epi64(one, exponents)))
        })
    }

    #[inline(always)]
    fn less(self, other: Self) -> __m256d {
        x86!(_mm256_cmp_pd::<_CMP_LT_OQ>(self.0, other.0))
    }

    #[inline(always)]
    fn not_less(self, other: Self) -> __m256d {
        x86!(_mm256_cmp_pd::<_CMP_NLT_UQ>(self.0, other.0))
    }

    #[inline(always)]
    fn not_equal(self, other: Self) -> __m256d {
        x86!(_mm256_cmp_pd::<_CMP_NEQ_UQ>(self.0, other.0))
    }

    #[inline(always)]
    fn any(mask: __m256d) -> bool {
        x86!(_mm256_movemask_pd(mask) != 0)
    }

    #[inline(always)]
    fn bits(mask: __m256d) -> u32 {
        x86!(_mm256_movemask_pd(mask)) as u32
    }

    #[inline(always)]
    fn or_zero(self, mask: __m256d) -> Self {
        Self(x86!(_mm256_and_pd(mask, self.0)))
    }

    #[inline(always)]
    fn add_product_where(self, mask: __m256d, one: Self, other: Self) -> Self {
        let sum = one.mul_add(other, self);
        Self(x86!(_mm256_blendv_pd(self.0, sum.0, mask)))
    }
}

impl Memory<f64> for F64x4 {
    #[inline(always)]
    unsafe fn load(source: *const f64) -> Self {
        Self(x86!(_mm256_loadu_pd(source)))
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f64) {
        x86!(_mm256_storeu_pd(target, self.0))
    }

    #[inline(always)]
    unsafe fn stream(self, target: *mut f64) {
        x86!(_mm256_stream_pd(target, self.0))
    }
}
