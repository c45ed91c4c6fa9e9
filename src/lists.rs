//! Products with lists in place of a matrix: of each row a few (class, value), as [`crate::rows::lists`] makes them.
//!
//! With the entries a(r, c) of the lists, `rest` and `at_label` a number per row, and y the row's label,
//!
//! ```text
//! A[r, c] = rest_r·a(r, c) + 1[c = y_r]·at_label_r
//! by_row:    A·W,   gathers rows of W [V, H] by the lists
//! by_class:  Aᵀ·X,  gathers rows of X [M, H] by the lists sorted by class, and may add one row to all of its own
//! ```
//!
//! Sums are in f32 (f64 for f64), in the order of the lists: which thread has which row or class changes no bit. A row of
//! the result that nothing is gathered for is 0, or what all rows have. Of a row or class whose two factors are 0 nothing is read.
//!
//! Per entry and vector: load, conversion of 16 bits, multiplication and addition.

use std::ops::Range;

use half::{bf16, f16};

use crate::array::{ArgumentError, Array, Dtype};
use crate::outputs;
use crate::simd::{
    Element, Isa, Kernel, Level, MAX_LANES, Memory, Real, Vector, dispatch, fence, prefetch,
};
use crate::threads::for_each_range;

/// Vectors of sums that are held in registers: as many as there are, then fewer for the columns that are left.
const BLOCKS: [usize; 4] = [16, 8, 4, 1];

/// By how many terms rows are asked for ahead: they are anywhere in memory.
const AHEAD: usize = 4;

const CACHE_LINE: usize = 64;

/// Classes that a thread takes at a time.
const CLASSES: usize = 64;

/// Of a large matrix so many columns and bytes are gathered from at a time, for so many bytes of sums: together most of a
/// second-level cache.
const PART: usize = 256;
const BLOCK_BYTES: usize = 1 << 19;
const SUM_BYTES: usize = 1 << 19;

/// How often a row of the other matrix is gathered in the mean, from where on it pays to take the sums from memory and back.
const REUSES: usize = 4;

/// The matrix A.
pub struct Matrix<'a> {
    /// Where each row's list begins and the last ends: M + 1.
    pub offsets: &'a [i64],
    pub classes: &'a [i64],
    /// f32, or f64 for f64.
    pub values: &'a Array,
    /// [M], of the same dtype.
    pub rest: &'a Array,
    pub at_label: &'a Array,
    /// Places of the labels among the classes; those that are none stand for no label here.
    pub labels: &'a [i64],
    /// V.
    pub width: usize,
}

/// One term of a sum: a row of the other matrix, and its factor.
type Term<R> = (u32, R);

/// Writes A·W into `out` [M, H], of the dtype of W or of the sums.
///
/// # Safety
/// Every array describes live memory that nobody else writes to meanwhile, `out` writable memory.
pub unsafe fn by_row(
    matrix: &Matrix<'_>,
    weight: &Array,
    out: &Array,
    threads: usize,
) -> Result<(), ArgumentError> {
    matrix.check(weight, out)?;
    check_matrix("weight", weight, matrix.width)?;
    check_matrix("out", out, matrix.rows())?;
    let level = Level::current()?;
    // SAFETY: passed on to the caller; dtypes are told apart by `typed`.
    unsafe {
        typed(
            weight.dtype,
            ByRow {
                matrix,
                weight,
                out,
                level,
                threads,
            },
        );
    }
    Ok(())
}

/// Writes Aᵀ·X into `out` [V, H], of the dtype of X or of the sums, and the sums of A's columns into `sums` [V]; every row
/// of `out` has `base` [H], of the dtype of the sums, besides.
///
/// # Safety
/// As for [`by_row`].
pub unsafe fn by_class(
    matrix: &Matrix<'_>,
    inputs: &Array,
    base: Option<&Array>,
    (out, sums): (&Array, Option<&Array>),
    threads: usize,
) -> Result<(), ArgumentError> {
    matrix.check(inputs, out)?;
    check_matrix("inputs", inputs, matrix.rows())?;
    check_matrix("out", out, matrix.width)?;
    if let Some(base) = base {
        check_vector("base", base, matrix.values.dtype, out.shape[1])?;
    }
    if let Some(sums) = sums {
        check_vector("sums", sums, matrix.values.dtype, matrix.width)?;
    }
    if u32::try_from(matrix.rows()).is_err() {
        return Err(ArgumentError::Value(format!(
            "rows: {}, expected fewer than 2^32",
            matrix.rows()
        )));
    }
    let level = Level::current()?;
    // SAFETY: as above.
    unsafe {
        typed(
            inputs.dtype,
            ByClass {
                matrix,
                inputs,
                base,
                out,
                sums,
                level,
                threads,
            },
        );
    }
    Ok(())
}

/// Work for an element type.
trait Typed {
    /// # Safety
    /// The elements of the matrix that is gathered from are `E`s.
    unsafe fn run<E: Element>(self);
}

/// # Safety
/// That of the work, whose elements are of this dtype.
unsafe fn typed(dtype: Dtype, work: impl Typed) {
    // SAFETY: passed on to the caller.
    unsafe {
        match dtype {
            Dtype::F16 => work.run::<f16>(),
            Dtype::Bf16 => work.run::<bf16>(),
            Dtype::F32 => work.run::<f32>(),
            Dtype::F64 => work.run::<f64>(),
            Dtype::I64 | Dtype::Bool => unreachable!("the check lets floats through only"),
        }
    }
}

fn check_vector(name: &str, array: &Array, dtype: Dtype, len: usize) -> Result<(), ArgumentError> {
    if array.dtype != dtype {
        return Err(ArgumentError::Type(format!(
            "{name}: dtype {}, expected {}",
            array.dtype.name(),
            dtype.name()
        )));
    }
    if *array.shape != [len] || !array.is_contiguous() {
        return Err(ArgumentError::Value(format!(
            "{name}: shape {:?} with strides {:?}, expected [{len}], contiguous",
            array.shape, array.strides
        )));
    }
    Ok(())
}

fn check_matrix(name: &str, array: &Array, rows: usize) -> Result<(), ArgumentError> {
    let dense = matches!(*array.strides, [_, step] if step == 1 || array.shape[1] <= 1);
    if array.shape.first() != Some(&rows) || !dense {
        return Err(ArgumentError::Value(format!(
            "{name}: shape {:?} with strides {:?}, expected [{rows}, H] with dense rows",
            array.shape, array.strides
        )));
    }
    Ok(())
}

impl Matrix<'_> {
    /// M.
    fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Checks the lists, and that the other matrix and the result go together.
    fn check(&self, other: &Array, out: &Array) -> Result<(), ArgumentError> {
        let sum = if other.dtype == Dtype::F64 {
            Dtype::F64
        } else {
            Dtype::F32
        };
        if !other.dtype.is_float() || ![sum, other.dtype].contains(&out.dtype) {
            return Err(ArgumentError::Type(format!(
                "out: dtype {} for a product with {}, expected {} or that",
                out.dtype.name(),
                other.dtype.name(),
                sum.name()
            )));
        }
        if other.shape.len() != 2 || out.shape.len() != 2 || other.shape[1] != out.shape[1] {
            return Err(ArgumentError::Value(format!(
                "out: shape {:?} for a product with {:?}, expected two matrices with as many columns",
                out.shape, other.shape
            )));
        }
        check_vector("values", self.values, sum, self.classes.len())?;
        check_vector("rest", self.rest, sum, self.rows())?;
        check_vector("at_label", self.at_label, sum, self.rows())?;
        self.check_lists()
    }

    fn check_lists(&self) -> Result<(), ArgumentError> {
        let offsets = self.offsets;
        let ends = (offsets.first(), offsets.last());
        if offsets.len() != self.rows() + 1
            || ends != (Some(&0), Some(&(self.classes.len() as i64)))
            || offsets.windows(2).any(|pair| pair[0] > pair[1])
        {
            return Err(ArgumentError::Value(format!(
                "offsets: expected {} that begin with 0, never decrease and end with {}",
                self.rows() + 1,
                self.classes.len()
            )));
        }
        match self
            .classes
            .iter()
            .find(|class| self.place(**class).is_none())
        {
            None => Ok(()),
            Some(class) => Err(ArgumentError::Value(format!(
                "classes: {class}, expected 0 <= class < {}",
                self.width
            ))),
        }
    }

    /// A class that there is.
    fn place(&self, class: i64) -> Option<u32> {
        u32::try_from(class)
            .ok()
            .filter(|class| (*class as usize) < self.width)
    }

    /// What row `row` has at its label, if that is not 0, and what its list is multiplied with.
    ///
    /// # Safety
    /// The arrays are live and of type `R`, as was checked.
    #[inline(always)]
    unsafe fn factors<R: Real>(&self, row: usize) -> (Option<Term<R>>, R) {
        // SAFETY: contiguous arrays of `R`s, with one for each row.
        let (rest, at_label) = unsafe {
            (
                self.rest.pointer::<R>(row as isize).read_unaligned(),
                self.at_label.pointer::<R>(row as isize).read_unaligned(),
            )
        };
        let label = self.place(self.labels[row]);
        (
            label
                .filter(|_| at_label != R::ZERO)
                .map(|label| (label, at_label)),
            rest,
        )
    }

    /// Where the list of a row stands that is multiplied with `rest`: of 0 nothing is read.
    #[inline(always)]
    fn list<R: Real>(&self, row: usize, rest: R) -> Range<usize> {
        if rest == R::ZERO {
            return 0..0;
        }
        self.offsets[row] as usize..self.offsets[row + 1] as usize
    }

    /// The terms of row `row`, appended to `terms` as (class, factor): how many of them, the first, are the label's.
    ///
    /// # Safety
    /// As for [`Matrix::factors`].
    unsafe fn row<R: Real>(&self, row: usize, terms: &mut Vec<Term<R>>) -> usize {
        // SAFETY: passed on to the caller.
        let (label, rest) = unsafe { self.factors::<R>(row) };
        terms.extend(label);
        let values = self.values.pointer::<R>(0).cast_const();
        for index in self.list(row, rest) {
            // SAFETY: as above; there are as many values as classes.
            let value = unsafe { values.add(index).read_unaligned() };
            terms.push((self.classes[index] as u32, rest * value));
        }
        usize::from(label.is_some())
    }
}

struct ByRow<'a> {
    matrix: &'a Matrix<'a>,
    weight: &'a Array,
    out: &'a Array,
    level: Level,
    threads: usize,
}

impl ByRow<'_> {
    /// Whether rows of W are gathered so often that they should come from a cache.
    fn reuses(&self) -> bool {
        let bytes = self.matrix.width * self.weight.shape[1] * self.weight.dtype.size();
        bytes > 2 * BLOCK_BYTES && self.matrix.classes.len() >= REUSES * self.matrix.width
    }

    /// As `run`, to the bit: the rows of a range by blocks of columns and classes, so that what is gathered of W stays in
    /// the cache, the sums in memory.
    ///
    /// # Safety
    /// As for `run`.
    unsafe fn blocked<E: Element>(&self, rows: Range<usize>) {
        let (width, block) = (self.matrix.width, self.block::<E>());
        let mut terms = Vec::new();
        let mut blocks = Blocks {
            count: width.div_ceil(block) + 1,
            ends: Vec::new(),
        };
        for row in rows.clone() {
            let begin = terms.len();
            // SAFETY: passed on to the caller.
            let own = unsafe { self.matrix.row::<E::Real>(row, &mut terms) };
            blocks.push(&terms, begin, own, block);
        }
        let all = self.weight.shape[1];
        let mut sums = vec![E::Real::ZERO; rows.len() * all.min(PART)];
        for first in (0..all).step_by(PART) {
            let columns = first..all.min(first + PART);
            let sums = &mut sums[..rows.len() * columns.len()];
            sums.fill(E::Real::ZERO);
            let part = Part::<E> {
                source: (self.weight.address as *const E).wrapping_add(first),
                stride: self.weight.strides[0],
                columns: columns.len(),
                terms: &terms,
                blocks: &blocks,
                classes: (block, width),
                sums,
            };
            dispatch(self.level, part);
            // SAFETY: passed on to the caller.
            unsafe {
                for (sums, row) in sums.chunks_exact(columns.len()).zip(rows.clone()) {
                    write_row::<E>(self.level, sums, self.out, (row, first));
                }
            }
        }
    }

    /// Classes of a block, of which so many columns are gathered from.
    fn block<E: Element>(&self) -> usize {
        let columns = self.weight.shape[1].min(PART);
        (BLOCK_BYTES / (columns * size_of::<E>())).max(1)
    }
}

/// Where the terms of rows stand: of each row first its label's, then those of each block of classes.
struct Blocks {
    /// Blocks of classes, and one for the labels.
    count: usize,
    /// `count + 1` of each row: where each block's begin, and the last one's end.
    ends: Vec<usize>,
}

impl Blocks {
    /// Adds a row whose terms begin at `begin`, with `own` of its label; those behind them rise.
    fn push<R>(&mut self, terms: &[Term<R>], begin: usize, own: usize, block: usize) {
        self.ends.extend([begin, begin + own]);
        let mut index = begin + own;
        for number in 1..self.count {
            let end = number * block;
            while index < terms.len() && (terms[index].0 as usize) < end {
                index += 1;
            }
            self.ends.push(index);
        }
    }
}

/// Adds the terms of some rows to their sums of some columns, block by block, and asks for the next block meanwhile.
struct Part<'a, E: Element> {
    /// From the first of the columns on.
    source: *const E,
    stride: isize,
    columns: usize,
    terms: &'a [Term<E::Real>],
    blocks: &'a Blocks,
    /// Classes of a block, and of all.
    classes: (usize, usize),
    /// Rows of so many columns.
    sums: &'a mut [E::Real],
}

impl<E: Element> Kernel for Part<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let (block, all) = self.classes;
        let rows = self.sums.len() / self.columns;
        let share = block.div_ceil(rows);
        let mut number = 0;
        while number < self.blocks.count {
            let (next, end) = (number * block, all.min((number + 1) * block));
            let mut row = 0;
            while row < rows {
                let first = next + row * share;
                self.prefetch(first, end.min(first + share));
                let at = row * (self.blocks.count + 1) + number;
                let of_block = self.blocks.ends[at]..self.blocks.ends[at + 1];
                if !of_block.is_empty() {
                    let work = Accumulate::<E> {
                        source: self.source,
                        stride: self.stride,
                        terms: &self.terms[of_block],
                        sums: self.sums[row * self.columns..].as_mut_ptr(),
                    };
                    // SAFETY: the columns are there, and as many sums.
                    unsafe { sweep::<E, I>(&work, self.columns) };
                }
                row += 1;
            }
            number += 1;
        }
    }
}

impl<E: Element> Part<'_, E> {
    /// Asks for the columns of some classes.
    #[inline(always)]
    fn prefetch(&self, mut class: usize, end: usize) {
        while class < end {
            let row = self.source.wrapping_offset(class as isize * self.stride);
            let mut byte = 0;
            while byte < self.columns * size_of::<E>() {
                prefetch::<false, E>(row.wrapping_byte_add(byte));
                byte += CACHE_LINE;
            }
            class += 1;
        }
    }
}

impl Typed for ByRow<'_> {
    unsafe fn run<E: Element>(self) {
        let columns = self.weight.shape[1];
        if columns > 0 && self.reuses() {
            let group = (SUM_BYTES / (columns.min(PART) * size_of::<E::Real>())).max(1);
            let group = group.min(self.matrix.rows().div_ceil(self.threads));
            // SAFETY: the promise of `by_row`.
            for_each_range(self.threads, self.matrix.rows(), group, |rows| unsafe {
                self.blocked::<E>(rows);
            });
            return;
        }
        for_each_range(self.threads, self.matrix.rows(), 1, |range| {
            let mut terms = Vec::new();
            for row in range {
                terms.clear();
                // SAFETY: the promise of `by_row`.
                unsafe {
                    self.matrix.row::<E::Real>(row, &mut terms);
                    let out = (self.out, row);
                    gather::<E>(self.level, (self.weight, None), &terms, out, false);
                }
            }
        });
    }
}

struct ByClass<'a> {
    matrix: &'a Matrix<'a>,
    inputs: &'a Array,
    base: Option<&'a Array>,
    out: &'a Array,
    sums: Option<&'a Array>,
    level: Level,
    threads: usize,
}

impl Typed for ByClass<'_> {
    unsafe fn run<E: Element>(self) {
        // SAFETY: the promise of `by_class`.
        let (starts, terms) = unsafe { self.by_class::<E::Real>() };
        let row = self.out.shape[1] * self.out.dtype.size();
        let aligned = self.out.is_contiguous()
            && row.is_multiple_of(CACHE_LINE)
            && self.out.address.is_multiple_of(CACHE_LINE);
        let streams = aligned && self.out.dtype == self.inputs.dtype && outputs::streams(self.out);
        for_each_range(self.threads, self.matrix.width, CLASSES, |range| {
            for class in range {
                let terms = &terms[starts[class]..starts[class + 1]];
                // SAFETY: as above.
                unsafe {
                    let out = (self.out, class);
                    gather::<E>(self.level, (self.inputs, self.base), terms, out, streams);
                }
                if let Some(sums) = self.sums {
                    let sum = terms.iter().fold(E::Real::ZERO, |sum, (_, a)| sum + *a);
                    // SAFETY: a contiguous vector of V numbers of this type, as was checked.
                    unsafe { sums.pointer::<E::Real>(class as isize).write_unaligned(sum) };
                }
            }
            if streams {
                fence();
            }
        });
    }
}

impl ByClass<'_> {
    /// The terms (row, factor) sorted by class, those of a class in the order of rows, and where each class's begin.
    ///
    /// # Safety
    /// That of [`by_class`].
    unsafe fn by_class<R: Real>(&self) -> (Vec<usize>, Vec<Term<R>>) {
        let matrix = self.matrix;
        let mut starts = vec![0; matrix.width + 1];
        for row in 0..matrix.rows() {
            // SAFETY: passed on to the caller.
            let (label, rest) = unsafe { matrix.factors::<R>(row) };
            if let Some((label, _)) = label {
                starts[label as usize + 1] += 1;
            }
            for class in &matrix.classes[matrix.list(row, rest)] {
                starts[*class as usize + 1] += 1;
            }
        }
        for class in 0..matrix.width {
            starts[class + 1] += starts[class];
        }
        let mut next = starts.clone();
        let mut terms = vec![(0, R::ZERO); starts[matrix.width]];
        let values = matrix.values.pointer::<R>(0).cast_const();
        for row in 0..matrix.rows() {
            let mut enter = |class: usize, factor: R| {
                terms[next[class]] = (row as u32, factor);
                next[class] += 1;
            };
            // SAFETY: passed on to the caller; there are as many values as classes.
            unsafe {
                let (label, rest) = matrix.factors::<R>(row);
                if let Some((label, factor)) = label {
                    enter(label as usize, factor);
                }
                for index in matrix.list(row, rest) {
                    let value = values.add(index).read_unaligned();
                    enter(matrix.classes[index] as usize, rest * value);
                }
            }
        }
        (starts, terms)
    }
}

/// Work on the columns of rows, by blocks of N vectors and, what is left, one by one.
trait Columns<E: Element> {
    /// N vectors of columns from `at` on.
    ///
    /// # Safety
    /// There are as many columns.
    unsafe fn block<I: Isa, const N: usize>(&self, at: usize);

    /// One column.
    ///
    /// # Safety
    /// There is such a column.
    unsafe fn column(&self, column: usize);
}

/// All columns, in blocks as large as there are.
///
/// # Safety
/// There are so many columns.
#[inline(always)]
unsafe fn sweep<E: Element, I: Isa>(work: &impl Columns<E>, columns: usize) {
    let lanes = <E::Vector<I> as Vector>::LANES;
    let mut at = 0;
    // SAFETY: blocks end before `columns`.
    unsafe {
        while at + BLOCKS[0] * lanes <= columns {
            work.block::<I, { BLOCKS[0] }>(at);
            at += BLOCKS[0] * lanes;
        }
        while at + BLOCKS[1] * lanes <= columns {
            work.block::<I, { BLOCKS[1] }>(at);
            at += BLOCKS[1] * lanes;
        }
        while at + BLOCKS[2] * lanes <= columns {
            work.block::<I, { BLOCKS[2] }>(at);
            at += BLOCKS[2] * lanes;
        }
        while at + lanes <= columns {
            work.block::<I, { BLOCKS[3] }>(at);
            at += lanes;
        }
        for column in at..columns {
            work.column(column);
        }
    }
}

/// Writes `base` and Σ factor·source[row] over the terms into row `target` of `out`, with `streams` around the caches: a
/// [`fence`] is to follow.
///
/// # Safety
/// `source` is a matrix of `E`s and `out` one of `E`s or of their reals, as many columns wide, both with dense rows; `base`
/// has as many reals; the terms name rows of `source`. Rows of `E`s that are streamed begin at multiples of a cache line.
unsafe fn gather<E: Element>(
    level: Level,
    (source, base): (&Array, Option<&Array>),
    terms: &[Term<E::Real>],
    (out, target): (&Array, usize),
    streams: bool,
) {
    let address = out.offset(target, 1) * out.dtype.size() as isize;
    dispatch(
        level,
        Gather::<E> {
            source: source.address as *const E,
            stride: source.strides[0],
            columns: source.shape[1],
            base: base.map(|base| base.pointer::<E::Real>(0).cast_const()),
            terms,
            out: (out.address as *mut u8).wrapping_offset(address),
            rounds: out.dtype == source.dtype,
            streams,
        },
    );
}

struct Gather<'a, E: Element> {
    source: *const E,
    stride: isize,
    columns: usize,
    /// What the sums begin with; 0 where there is none.
    base: Option<*const E::Real>,
    terms: &'a [Term<E::Real>],
    out: *mut u8,
    /// Whether the result is of `E`s, and goes around the caches.
    rounds: bool,
    streams: bool,
}

impl<E: Element> Kernel for Gather<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        // SAFETY: that of `gather`.
        unsafe { sweep::<E, I>(&self, self.columns) };
    }
}

impl<E: Element> Gather<'_, E> {
    /// Asks for the row of a term that comes later.
    #[inline(always)]
    fn prefetch(&self, index: usize) {
        if let Some(&(row, _)) = self.terms.get(index) {
            let row = self.source.wrapping_offset(row as isize * self.stride);
            for byte in (0..self.columns * size_of::<E>()).step_by(CACHE_LINE) {
                prefetch::<false, E>(row.wrapping_byte_add(byte));
            }
        }
    }
}

impl<E: Element> Columns<E> for Gather<'_, E> {
    #[inline(always)]
    unsafe fn block<I: Isa, const N: usize>(&self, at: usize) {
        let lanes = <E::Vector<I> as Vector>::LANES;
        let mut sums = [<E::Vector<I> as Vector>::splat(E::Real::ZERO); N];
        // SAFETY: passed on to the caller.
        unsafe {
            if let Some(base) = self.base {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = Memory::<E::Real>::load(base.add(at + i * lanes));
                }
            }
            for (index, &(row, factor)) in self.terms.iter().enumerate() {
                if at == 0 {
                    self.prefetch(index + AHEAD);
                }
                let row = self.source.offset(row as isize * self.stride).add(at);
                let factor = <E::Vector<I> as Vector>::splat(factor);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let x: E::Vector<I> = Memory::<E>::load(row.add(i * lanes));
                    *sum = x.mul_add(factor, *sum);
                }
            }
            for (i, sum) in sums.into_iter().enumerate() {
                let target = self.out.cast::<E>().add(at + i * lanes);
                if self.streams {
                    Memory::<E>::stream(sum, target);
                } else if self.rounds {
                    Memory::<E>::store(sum, target);
                } else {
                    let mut numbers = [E::Real::ZERO; MAX_LANES];
                    sum.write(&mut numbers);
                    self.out
                        .cast::<E::Real>()
                        .add(at + i * lanes)
                        .copy_from_nonoverlapping(numbers.as_ptr(), lanes);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn column(&self, column: usize) {
        let mut sum = E::Real::ZERO;
        // SAFETY: passed on to the caller.
        unsafe {
            if let Some(base) = self.base {
                sum = base.add(column).read_unaligned();
            }
            for &(row, factor) in self.terms {
                let x = self.source.offset(row as isize * self.stride).add(column);
                sum = sum + x.read_unaligned().to_real() * factor;
            }
            if self.rounds {
                let value = E::from_f64(sum.to_f64());
                self.out.cast::<E>().add(column).write_unaligned(value);
            } else {
                self.out.cast::<E::Real>().add(column).write_unaligned(sum);
            }
        }
    }
}

/// Adds Σ factor·source[row] over the terms to `sums`, one after the other as [`Gather`] does.
struct Accumulate<'a, E: Element> {
    source: *const E,
    stride: isize,
    terms: &'a [Term<E::Real>],
    sums: *mut E::Real,
}

impl<E: Element> Columns<E> for Accumulate<'_, E> {
    #[inline(always)]
    unsafe fn block<I: Isa, const N: usize>(&self, at: usize) {
        let lanes = <E::Vector<I> as Vector>::LANES;
        let mut sums = [<E::Vector<I> as Vector>::splat(E::Real::ZERO); N];
        // SAFETY: passed on to the caller.
        unsafe {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = Memory::<E::Real>::load(self.sums.add(at + i * lanes));
            }
            for &(row, factor) in self.terms {
                let row = self.source.offset(row as isize * self.stride).add(at);
                let factor = <E::Vector<I> as Vector>::splat(factor);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let x: E::Vector<I> = Memory::<E>::load(row.add(i * lanes));
                    *sum = x.mul_add(factor, *sum);
                }
            }
            for (i, sum) in sums.into_iter().enumerate() {
                Memory::<E::Real>::store(sum, self.sums.add(at + i * lanes));
            }
        }
    }

    #[inline(always)]
    unsafe fn column(&self, column: usize) {
        // SAFETY: passed on to the caller.
        unsafe {
            let sum = self.sums.add(column);
            for &(row, factor) in self.terms {
                let x = self.source.offset(row as isize * self.stride).add(column);
                *sum = *sum + x.read_unaligned().to_real() * factor;
            }
        }
    }
}

/// Writes sums into row `target` of `out` from a column on, rounded to its elements.
///
/// # Safety
/// `out` is a matrix of `E`s or of their reals with dense rows, which have as many columns from there on.
unsafe fn write_row<E: Element>(
    level: Level,
    sums: &[E::Real],
    out: &Array,
    (target, column): (usize, usize),
) {
    let address = (out.offset(target, 1) + column as isize) * out.dtype.size() as isize;
    let row = (out.address as *mut u8).wrapping_offset(address);
    // SAFETY: passed on to the caller.
    unsafe {
        if out.dtype.size() == size_of::<E::Real>() {
            row.cast::<E::Real>()
                .copy_from_nonoverlapping(sums.as_ptr(), sums.len());
        } else {
            dispatch(level, Round::<E>(sums, row.cast()));
        }
    }
}

struct Round<'a, E: Element>(&'a [E::Real], *mut E);

impl<E: Element> Kernel for Round<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let lanes = <E::Vector<I> as Vector>::LANES;
        let whole = self.0.len() - self.0.len() % lanes;
        // SAFETY: that of `write_row`.
        unsafe {
            for at in (0..whole).step_by(lanes) {
                let sum: E::Vector<I> = Memory::<E::Real>::load(self.0[at..].as_ptr());
                Memory::<E>::store(sum, self.1.add(at));
            }
            for at in whole..self.0.len() {
                let value = E::from_f64(self.0[at].to_f64());
                self.1.add(at).write_unaligned(value);
            }
        }
    }
}
