//! Products of f32 by vectors: of every machine.

use std::marker::PhantomData;

use super::{InMemory, Line, STEP, Sums};
use crate::simd::{Memory, Vector};

/// Vectors of a row's columns that are added up at a time.
const COLUMNS: usize = 2;
/// Rows that are, at most.
const ROWS: usize = 8;

/// Sums in vectors.
pub struct VectorSums<V>(InMemory, PhantomData<V>);

impl<V: Vector<Scalar = f32> + Memory<f32>> Sums for VectorSums<V> {
    const TERMS: usize = 1;
    const STEPS: usize = 8;
    type Registers = ();

    #[inline(always)]
    unsafe fn registers() {}

    #[inline(always)]
    fn new((): &()) -> Self {
        VectorSums(InMemory::ZERO, PhantomData)
    }

    #[inline(always)]
    unsafe fn add(&mut self, left: *const Line, right: *const Line, steps: usize) {
        // As many as the registers hold beside the columns.
        let rows = V::LANES / COLUMNS;
        let mut row = 0;
        while row < STEP {
            let mut vector = 0;
            while vector < STEP / V::LANES {
                // SAFETY: the caller's promise.
                unsafe { self.add_part((left, right), steps, (row, vector * V::LANES)) };
                vector += COLUMNS;
            }
            row += rows;
        }
    }

    #[inline(always)]
    fn write(self, target: &mut [[f32; 16]; 64]) {
        *target = self.0.0;
    }
}

impl<V: Vector<Scalar = f32> + Memory<f32>> VectorSums<V> {
    /// Adds to some rows' sums of some columns, from there on.
    ///
    /// # Safety
    /// As for `add`.
    #[inline(always)]
    unsafe fn add_part(
        &mut self,
        (left, right): (*const Line, *const Line),
        steps: usize,
        (row, column): (usize, usize),
    ) {
        // Plain loops: what iterators do is not inlined everywhere, and compiled without the vectors' instructions.
        let rows = V::LANES / COLUMNS;
        let mut sums = [[V::splat(0.0); COLUMNS]; ROWS];
        let mut columns = [V::splat(0.0); COLUMNS];
        // Where each vector of the columns begins: halves of 16 columns follow each other.
        let (mut of_sums, mut of_right) = ([0; COLUMNS], [0; COLUMNS]);
        let mut v = 0;
        while v < COLUMNS {
            let (half, lane) = ((column + v * V::LANES) / 16, (column + v * V::LANES) % 16);
            of_sums[v] = (half * STEP + row) * 16 + lane;
            of_right[v] = half * 16 * 16 + lane;
            v += 1;
        }
        let target = self.0.0.as_mut_ptr().cast::<f32>();
        // SAFETY: rows and columns lie in the 32 by 32, lines in the steps.
        unsafe {
            let mut r = 0;
            while r < rows {
                v = 0;
                while v < COLUMNS {
                    sums[r][v] = V::load(target.add(of_sums[v] + r * 16));
                    v += 1;
                }
                r += 1;
            }
            let mut step = 0;
            while step < steps {
                let left = left.add(step * STEP + row).cast::<f32>();
                let right = right.add(step * STEP).cast::<f32>();
                let mut term = 0;
                while term < 16 {
                    v = 0;
                    while v < COLUMNS {
                        columns[v] = V::load(right.add(of_right[v] + term * 16));
                        v += 1;
                    }
                    r = 0;
                    while r < rows {
                        let own = V::splat(left.add(r * 16 + term).read());
                        v = 0;
                        while v < COLUMNS {
                            sums[r][v] = own.mul_add(columns[v], sums[r][v]);
                            v += 1;
                        }
                        r += 1;
                    }
                    term += 1;
                }
                step += 1;
            }
            r = 0;
            while r < rows {
                v = 0;
                while v < COLUMNS {
                    Memory::<f32>::store(sums[r][v], target.add(of_sums[v] + r * 16));
                    v += 1;
                }
                r += 1;
            }
        }
    }
}
