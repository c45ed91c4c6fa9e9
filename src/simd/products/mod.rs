//! Products of bf16 matrices, added up in f32: blocks of 32 rows by 32 columns, a step of terms after the other.
//!
//! By matrix tiles, by dot products of pairs of bf16, or by vectors of f32, which are on every machine.

#[cfg(target_arch = "x86_64")]
pub mod dots;
pub mod tiles;
pub mod vectors;

use half::bf16;

use super::{Isa, Kernel, Level, MAX_LANES, Vector, dispatch};

/// A row of an operand of a step.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u32; 16]);

impl Line {
    pub const ZERO: Line = Line([0; 16]);
}

/// Lines of an operand that a step takes. Of the left one: each row's terms. Of the right one: each place of a row's, for the
/// first 16 columns and then for the other 16.
pub const STEP: usize = 32;

/// Sums of 32×32 products.
pub trait Sums: Sized {
    /// Terms in a place of a line: pairs of bf16, or single ones as f32.
    const TERMS: usize;
    /// How many steps are best added at a time.
    const STEPS: usize;
    /// What has to be there while there are sums.
    type Registers;

    /// # Safety
    /// The machine has the instructions.
    unsafe fn registers() -> Self::Registers;

    /// Zeros.
    fn new(registers: &Self::Registers) -> Self;

    /// Adds the products of some steps.
    ///
    /// # Safety
    /// `left` and `right` have [`STEP`] lines for each.
    unsafe fn add(&mut self, left: *const Line, right: *const Line, steps: usize);

    /// Writes the sums: 32 rows of the left 16 columns, then 32 rows of the right ones.
    fn write(self, target: &mut [[f32; 16]; 64]);
}

/// Work that is compiled once per instruction set and way of multiplying.
pub trait WithSums {
    type Output;

    fn run<I: Isa, S: Sums>(self) -> Self::Output;
}

/// Work with the sums of a level.
struct Leveled<W>(W, Level);

impl<W: WithSums> Kernel for Leveled<W> {
    type Output = W::Output;

    #[inline(always)]
    fn run<I: Isa>(self) -> W::Output {
        match self.1 {
            // For these there is code with the vectors of AVX-512 alone.
            _ if <I::F32 as Vector>::LANES < MAX_LANES => {
                self.0.run::<I, vectors::VectorSums<I::F32>>()
            }
            Level::Amx => self.0.run::<I, tiles::TileSums>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => self.0.run::<I, dots::DotSums>(),
            _ => self.0.run::<I, vectors::VectorSums<I::F32>>(),
        }
    }
}

/// Runs work at a level that this machine has.
pub fn with_sums<W: WithSums>(level: Level, work: W) -> W::Output {
    dispatch(level, Leveled(work, level))
}

/// A term where it belongs in its place.
#[inline(always)]
pub fn place<S: Sums>(term: usize, value: bf16) -> u32 {
    u32::from(value.to_bits())
        << if S::TERMS == 1 || term % 2 == 1 {
            16
        } else {
            0
        }
}

/// A line of as many terms as it has, from a row.
///
/// # Safety
/// The row has them.
#[inline(always)]
pub unsafe fn line<S: Sums>(row: *const bf16) -> Line {
    let mut line = Line::ZERO;
    if S::TERMS == 2 {
        // SAFETY: the caller's promise.
        return Line(unsafe { row.cast::<[u32; 16]>().read_unaligned() });
    }
    let mut term = 0;
    while term < 16 {
        // SAFETY: as above.
        line.0[term] = place::<S>(term, unsafe { row.add(term).read_unaligned() });
        term += 1;
    }
    line
}

/// Sums in memory.
#[repr(C, align(64))]
struct InMemory([[f32; 16]; 64]);

impl InMemory {
    const ZERO: InMemory = InMemory([[0.0; 16]; 64]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;

    struct Multiply<'a> {
        left: &'a [[bf16; 64]; STEP],
        right: &'a [[bf16; 64]; STEP],
    }

    impl WithSums for Multiply<'_> {
        type Output = [[f32; 16]; 64];

        #[inline(always)]
        fn run<I: Isa, S: Sums>(self) -> Self::Output {
            let each = 16 * S::TERMS;
            let steps = 64 / each;
            let (mut left, mut right) = (vec![], vec![Line::ZERO; steps * STEP]);
            for step in 0..steps {
                for row in self.left {
                    // SAFETY: a row has 64 terms.
                    left.push(unsafe { line::<S>(row[step * each..].as_ptr()) });
                }
                for (column, terms) in self.right.iter().enumerate() {
                    for (term, value) in terms[step * each..][..each].iter().enumerate() {
                        let line = step * STEP + column / 16 * 16 + term / S::TERMS;
                        right[line].0[column % 16] |= place::<S>(term, *value);
                    }
                }
            }
            let mut written = [[f32::NAN; 16]; 64];
            // SAFETY: the level is there; operands have so many lines.
            unsafe {
                let registers = S::registers();
                let mut sums = S::new(&registers);
                sums.add(left.as_ptr(), right.as_ptr(), 1);
                sums.add(left[STEP..].as_ptr(), right[STEP..].as_ptr(), steps - 1);
                sums.write(&mut written);
            }
            written
        }
    }

    #[test]
    fn every_way_to_multiply_is_right() {
        // Numbers of few digits, whose sums are exact in any order.
        let terms = |seed: usize| {
            std::array::from_fn(|row: usize| {
                std::array::from_fn(|term: usize| {
                    bf16::from_f32(((row * 37 + term * 11 + seed) % 19) as f32 - 9.0)
                })
            })
        };
        let (left, right): ([[bf16; 64]; STEP], [[bf16; 64]; STEP]) = (terms(1), terms(5));
        for level in Level::available() {
            let found = with_sums(
                level,
                Multiply {
                    left: &left,
                    right: &right,
                },
            );
            for row in 0..STEP {
                for column in 0..STEP {
                    let pairs = left[row].iter().zip(right[column]);
                    let sum: f32 = pairs.map(|(a, b)| a.to_f32() * b.to_f32()).sum();
                    assert_eq!(
                        found[column / 16 * STEP + row][column % 16],
                        sum,
                        "{level:?}"
                    );
                }
            }
        }
    }
}
