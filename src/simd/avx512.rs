//! AVX-512: 16 f32 or 8 f64.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Isa, MAX_LANES, Memory, Vector, octave, powers};

pub struct Avx512;

impl Isa for Avx512 {
    type F32 = F32x16;
    type F64 = F64x8;
}

#[derive(Clone, Copy)]
pub struct F32x16(__m512);

#[derive(Clone, Copy)]
pub struct F64x8(__m512d);

const STEPS: usize = 32;
const ROOT: f64 = 1.021_897_148_654_116_7;
const OCTAVE: [i32; STEPS] = octave(ROOT);
const POWERS: [f32; STEPS] = powers(ROOT);

/// Takes the upper half of each lane.
const UPPER_HALVES: [u16; 32] = {
    let mut places = [0; 32];
    let mut lane = 0;
    while lane < 16 {
        places[lane] = 2 * lane as u16 + 1;
        lane += 1;
    }
    places
};

/// Puts sixteen words into the upper halves of the lanes, and what is behind the words into the lower ones.
const INTO_UPPER_HALVES: [u16; 32] = {
    let mut places = [16; 32];
    let mut lane = 0;
    while lane < 16 {
        places[2 * lane + 1] = lane as u16;
        lane += 1;
    }
    places
};

/// An expression of intrinsics.
macro_rules! x86 {
    ($body:expr) => {
        // SAFETY: these vectors are made under `dispatch` only, after the features were detected.
        unsafe { $body }
    };
}

impl Vector for F32x16 {
    type Scalar = f32;
    type Mask = __mmask16;
    const LANES: usize = 16;
    const STEPS: f32 = STEPS as f32;
    // Minimax error 5.3e-8 of e^r.
    const EXP_POLYNOMIAL: &'static [f32] = &[1.000_014_7, 0.5];

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(x86!(_mm512_set1_ps(value)))
    }

    #[inline(always)]
    fn write(self, lanes: &mut [f32; MAX_LANES]) {
        x86!(_mm512_storeu_ps(lanes.as_mut_ptr(), self.0))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(x86!(_mm512_add_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(x86!(_mm512_sub_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(x86!(_mm512_mul_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(x86!(_mm512_div_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(x86!(_mm512_fmadd_ps(self.0, factor.0, addend.0)))
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        Self(x86!(_mm512_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        Self(x86!(_mm512_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(x86!(_mm512_abs_ps(self.0)))
    }

    #[inline(always)]
    fn with_sign_of(self, other: Self) -> Self {
        // Bitwise: sign bit from `other` (truth table 0xca chooses by the first operand).
        Self(x86!(_mm512_castsi512_ps(
            _mm512_ternarylogic_epi32::<0xca>(
                _mm512_set1_epi32(i32::MIN),
                _mm512_castps_si512(other.0),
                _mm512_castps_si512(self.0),
            )
        )))
    }

    #[inline(always)]
    fn two_to(shifted: Self) -> Self {
        x86!({
            let exponents = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted.0));
            let one = _mm512_castps_si512(_mm512_set1_ps(1.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(one, exponents)))
        })
    }

    #[inline(always)]
    fn power_above(y: Self) -> Self {
        // With the fraction of y as mantissa: 1 + f is at least 2^f, and at most 1.0615 times that.
        const MANTISSA: f32 = (1 << 23) as f32;
        x86!({
            let scale = _mm512_set1_ps(MANTISSA);
            let bits = _mm512_fmadd_ps(y.0, scale, _mm512_set1_ps(127.0 * MANTISSA));
            Self(_mm512_castsi512_ps(_mm512_cvtps_epi32(bits)))
        })
    }

    #[inline(always)]
    fn two_to_steps(shifted: Self) -> Self {
        const HALF: usize = STEPS / 2;
        x86!({
            let steps = _mm512_castps_si512(shifted.0);
            let low = _mm512_loadu_si512(OCTAVE.as_ptr().cast());
            let high = _mm512_loadu_si512(OCTAVE[HALF..].as_ptr().cast());
            let power = _mm512_permutex2var_epi32(low, steps, high);
            let octaves = _mm512_slli_epi32::<{ 23 - STEPS.trailing_zeros() }>(steps);
            Self(_mm512_castsi512_ps(_mm512_add_epi32(power, octaves)))
        })
    }

    const SCALES: bool = true;

    #[inline(always)]
    fn any_power(shifted: Self, n: Self) -> Self {
        const HALF: usize = STEPS / 2;
        x86!({
            let low = _mm512_loadu_ps(POWERS.as_ptr());
            let high = _mm512_loadu_ps(POWERS[HALF..].as_ptr());
            let power = _mm512_permutex2var_ps(low, _mm512_castps_si512(shifted.0), high);
            // By 2 to the integer that is not above n.
            Self(_mm512_scalef_ps(power, n.0))
        })
    }

    #[inline(always)]
    fn less(self, other: Self) -> __mmask16 {
        x86!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0))
    }

    #[inline(always)]
    fn not_less(self, other: Self) -> __mmask16 {
        x86!(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(self.0, other.0))
    }

    #[inline(always)]
    fn not_equal(self, other: Self) -> __mmask16 {
        x86!(_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(self.0, other.0))
    }

    #[inline(always)]
    fn any(mask: __mmask16) -> bool {
        mask != 0
    }

    #[inline(always)]
    fn bits(mask: __mmask16) -> u32 {
        u32::from(mask)
    }

    #[inline(always)]
    fn or_zero(self, mask: __mmask16) -> Self {
        Self(x86!(_mm512_maskz_mov_ps(mask, self.0)))
    }

    #[inline(always)]
    fn add_product_where(self, mask: __mmask16, one: Self, other: Self) -> Self {
        Self(x86!(_mm512_mask3_fmadd_ps(one.0, other.0, self.0, mask)))
    }
}

impl Memory<f32> for F32x16 {
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        Self(x86!(_mm512_loadu_ps(source)))
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        x86!(_mm512_storeu_ps(target, self.0))
    }

    #[inline(always)]
    unsafe fn stream(self, target: *mut f32) {
        x86!(_mm512_stream_ps(target, self.0))
    }
}

impl F32x16 {
    /// The upper halves of the lanes after rounding to nearest even; NaN stays NaN (and becomes quiet).
    #[inline(always)]
    fn to_bf16(self) -> __m256i {
        x86!({
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let quiet = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000));
            let places = _mm512_loadu_si512(UPPER_HALVES.as_ptr().cast());
            _mm512_castsi512_si256(_mm512_permutexvar_epi16(places, quiet))
        })
    }
}

impl Memory<bf16> for F32x16 {
    #[inline(always)]
    unsafe fn load(source: *const bf16) -> Self {
        x86!({
            let halves = _mm512_zextsi256_si512(_mm256_loadu_si256(source.cast()));
            let places = _mm512_loadu_si512(INTO_UPPER_HALVES.as_ptr().cast());
            let lanes = _mm512_permutexvar_epi16(places, halves);
            Self(_mm512_castsi512_ps(lanes))
        })
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut bf16) {
        x86!(_mm256_storeu_si256(target.cast(), self.to_bf16()))
    }

    #[inline(always)]
    unsafe fn stream(self, target: *mut bf16) {
        x86!(_mm256_stream_si256(target.cast(), self.to_bf16()))
    }
}

impl Memory<f16> for F32x16 {
    #[inline(always)]
    unsafe fn load(source: *const f16) -> Self {
        Self(x86!(_mm512_cvtph_ps(_mm256_loadu_si256(source.cast()))))
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f16) {
        x86!(_mm256_storeu_si256(
            target.cast(),
            _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)
        ))
    }

    #[inline(always)]
    unsafe fn stream(self, target: *mut f16) {
        x86!(_mm256_stream_si256(
            target.cast(),
            _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)
        ))
    }
}

impl Vector for F64x8 {
    type Scalar = f64;
    type Mask = __mmask8;
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(value: f64) -> Self {
        Self(x86!(_mm512_set1_pd(value)))
    }

    #[inline(always)]
    fn write(self, lanes: &mut [f64; MAX_LANES]) {
        x86!(_mm512_storeu_pd(lanes.as_mut_ptr(), self.0))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(x86!(_mm512_add_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(x86!(_mm512_sub_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(x86!(_mm512_mul_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(x86!(_mm512_div_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(x86!(_mm512_fmadd_pd(self.0, factor.0, addend.0)))
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        Self(x86!(_mm512_max_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        Self(x86!(_mm512_min_pd(self.0, other.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(x86!(_mm512_abs_pd(self.0)))
    }

    #[inline(always)]
    fn with_sign_of(self, other: Self) -> Self {
        // As for f32.
        Self(x86!(_mm512_castsi512_pd(
            _mm512_ternarylogic_epi64::<0xca>(
                _mm512_set1_epi64(i64::MIN),
                _mm512_castpd_si512(other.0),
                _mm512_castpd_si512(self.0),
            )
        )))
    }

    #[inline(always)]
    fn two_to(shifted: Self) -> Self {
        x86!({
            let exponents = _mm512_slli_epi64::<52>(_mm512_castpd_si512(shifted.0));
            let one = _mm512_castpd_si512(_mm512_set1_pd(1.0));
            Self(_mm512_castsi512_pd(_mm512_add_epi64(one, exponents)))
        })
    }

    #[inline(always)]
    fn less(self, other: Self) -> __mmask8 {
        x86!(_mm512_cmp_pd_mask::<_CMP_LT_OQ>(self.0, other.0))
    }

    #[inline(always)]
    fn not_less(self, other: Self) -> __mmask8 {
        x86!(_mm512_cmp_pd_mask::<_CMP_NLT_UQ>(self.0, other.0))
    }

    #[inline(always)]
    fn not_equal(self, other: Self) -> __mmask8 {
        x86!(_mm512_cmp_pd_mask::<_CMP_NEQ_UQ>(self.0, other.0))
    }

    #[inline(always)]
    fn any(mask: __mmask8) -> bool {
        mask != 0
    }

    #[inline(always)]
    fn bits(mask: __mmask8) -> u32 {
        u32::from(mask)
    }

    #[inline(always)]
    fn or_zero(self, mask: __mmask8) -> Self {
        Self(x86!(_mm512_maskz_mov_pd(mask, self.0)))
    }

    #[inline(always)]
    fn add_product_where(self, mask: __mmask8, one: Self, other: Self) -> Self {
        Self(x86!(_mm512_mask3_fmadd_pd(one.0, other.0, self.0, mask)))
    }
}

impl Memory<f64> for F64x8 {
    #[inline(always)]
    unsafe fn load(source: *const f64) -> Self {
        Self(x86!(_mm512_loadu_pd(source)))
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f64) {
        x86!(_mm512_storeu_pd(target, self.0))
    }

    #[inline(always)]
    unsafe fn stream(self, target: *mut f64) {
        x86!(_mm512_stream_pd(target, self.0))
    }
}
