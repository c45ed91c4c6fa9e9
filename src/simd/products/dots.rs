//! Dot products of pairs of bf16 (AVX-512 BF16).

use std::arch::x86_64::{
    __cpuid, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_load_ps, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_store_ps,
};

use super::{InMemory, Line, STEP, Sums};

/// Rows that are added up at a time.
const ROWS: usize = 8;

/// Whether this machine has them.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

/// Whether they are taken before products of f32. On Sapphire Rapids they are not: a GEMM of them takes 1.75 times as long.
/// On AMD's they are, of which nothing has been measured here.
pub fn fast() -> bool {
    let vendor = __cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx]
        .map(u32::to_le_bytes)
        .as_flattened()
        == b"AuthenticAMD"
}

/// Sums of dot products.
pub struct DotSums(InMemory);

impl Sums for DotSums {
    const TERMS: usize = 2;
    const STEPS: usize = 8;
    type Registers = ();

    #[inline(always)]
    unsafe fn registers() {}

    #[inline(always)]
    fn new((): &()) -> DotSums {
        DotSums(InMemory::ZERO)
    }

    #[inline(always)]
    unsafe fn add(&mut self, left: *const Line, right: *const Line, steps: usize) {
        // SAFETY: the caller's promise, and that of `registers`.
        unsafe { add(&mut self.0, left, right, steps) };
    }

    #[inline(always)]
    fn write(self, target: &mut [[f32; 16]; 64]) {
        *target = self.0.0;
    }
}

/// # Safety
/// As for `Sums::add`.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn add(sums: &mut InMemory, left: *const Line, right: *const Line, steps: usize) {
    let (halves, _) = sums.0.as_chunks_mut::<STEP>();
    let [first, other] = halves else { return };
    let rows = first.chunks_mut(ROWS).zip(other.chunks_mut(ROWS));
    for (group, (first, other)) in rows.enumerate() {
        let mut own = [[_mm512_setzero_ps(); 2]; ROWS];
        // SAFETY: sums are lines of 16, and there are so many lines in each step.
        unsafe {
            for ((own, first), other) in own.iter_mut().zip(first.iter()).zip(other.iter()) {
                *own = [
                    _mm512_load_ps(first.as_ptr()),
                    _mm512_load_ps(other.as_ptr()),
                ];
            }
            for step in 0..steps {
                let left = left.add(step * STEP + group * ROWS).cast::<i32>();
                let right = right.add(step * STEP).cast::<__m512bh>();
                for place in 0..16 {
                    let columns = [right.add(place).read(), right.add(16 + place).read()];
                    for (row, own) in own.iter_mut().enumerate() {
                        let pair = _mm512_set1_epi32(left.add(row * 16 + place).read());
                        let pair = std::mem::transmute::<__m512i, __m512bh>(pair);
                        own[0] = _mm512_dpbf16_ps(own[0], pair, columns[0]);
                        own[1] = _mm512_dpbf16_ps(own[1], pair, columns[1]);
                    }
                }
            }
            for ((own, first), other) in own.iter().zip(first).zip(other) {
                _mm512_store_ps(first.as_mut_ptr(), own[0]);
                _mm512_store_ps(other.as_mut_ptr(), own[1]);
            }
        }
    }
}
