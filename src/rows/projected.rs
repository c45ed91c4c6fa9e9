//! Statistics of logits that are never written: of bf16 hidden states times a bf16 weight, in f32.
//!
//! Blocks of 32 classes by 32 tokens are made by matrix tiles (`simd::tiles`), the classes down the rows, so that a vector
//! holds tokens of one class. While the tiles make one block, the vector units add up the exponentials of the block before:
//! a running maximum and a sum for each token, which are one chunk's when [`CHUNK`] classes are through. Chunks come together
//! as those of the rows do, in f64 and in order, so results depend neither on threads nor on other tokens.
//!
//! Per block of H features: H/32 steps of four tile products (64 cycles), beside them 64 vectors of exponentials (about 6.5
//! cycles each). The hidden states are packed once; the weight is read once for each group of tokens.

use std::ops::Range;
use std::sync::OnceLock;

use half::bf16;

use super::combine::{ChunkResult, Partial, Row};
use super::cpu::Transform;
use super::exp::Exp;
use super::{LiveRow, Rows, Stat, check_shape};
use crate::array::{ArgumentError, Array, Dtype};
use crate::rows::chunk::forward::Sums as ChunkSums;
use crate::simd::tiles::{self, Line, PlainSums, STEP, Sums, TileSums};
use crate::simd::{Isa, Kernel, Level, Memory, Vector, dispatch, prefetch};
use crate::threads::for_each_range;

/// Classes and tokens of a block.
const BLOCK: usize = 32;
/// Tokens of a line of a block.
const LANES: usize = BLOCK / 2;
/// Vectors over the tokens of a block, at most.
const MAX_PARTS: usize = 4;
/// Classes that one maximum and one sum stand for.
const CHUNK: usize = 2048;
/// Features that a step of the tiles takes.
const FEATURES: usize = 32;
/// Of the packed hidden states that are multiplied with a chunk of the weight before the next are: most of a second-level cache.
const GROUP_BYTES: usize = 3 << 19;
const LINE: usize = size_of::<Line>();

/// The logits of a block: 16 tokens of each class, then the other 16 of each.
#[repr(align(64))]
struct Block([[f32; LANES]; 2 * BLOCK]);

/// What logits are made of.
pub struct Product<'a> {
    /// [rows, H] bf16.
    pub hidden: &'a Array,
    /// [V, H] bf16.
    pub weight: &'a Array,
    /// [V] f32.
    pub bias: Option<&'a Array>,
}

/// Whether this machine has what makes it fast. Elsewhere the same is computed, slowly.
pub fn available() -> bool {
    Level::current().is_ok_and(|level| level == Level::Avx512) && tiles::available()
}

/// Writes `lse` and `logp` of the rows, whose logits (f32, of which there is only a shape) are `hidden @ weight.T + bias`.
///
/// # Safety
/// Every view but the logits describes live memory that nobody else writes to meanwhile, `out` writable memory.
pub unsafe fn forward(
    rows: &Rows,
    stats: &[Stat],
    product: &Product<'_>,
    out: &Array,
    threads: usize,
) -> Result<(), ArgumentError> {
    rows.check_forward(stats, 1, out)?;
    product.check(rows, stats)?;
    let level = Level::current()?;
    // SAFETY: the caller's promise, and the checks above.
    let live = unsafe { rows.live()? };
    let call = Call::new(rows, product, &live, level);
    let tasks = call.groups * call.chunks;
    let done: Vec<OnceLock<Chunk>> = (0..tasks).map(|_| OnceLock::new()).collect();
    for_each_range(threads, tasks, 1, |range| {
        for task in range {
            // SAFETY: passed on to the caller.
            done[task]
                .get_or_init(|| unsafe { call.chunk(task / call.chunks, task % call.chunks) });
        }
    });
    // SAFETY: `out` is a contiguous table of [stats, rows], as was checked.
    unsafe {
        (out.address as *mut u8).write_bytes(0, out.len() * out.dtype.size());
        for (place, row) in live.iter().enumerate() {
            let group = place / (call.group * BLOCK);
            let found = &done[group * call.chunks..(group + 1) * call.chunks];
            call.write(stats, out, (row, place % (call.group * BLOCK)), found);
        }
    }
    Ok(())
}

impl Product<'_> {
    fn check(&self, rows: &Rows, stats: &[Stat]) -> Result<(), ArgumentError> {
        let value = |message: String| Err(ArgumentError::Value(message));
        for stat in stats {
            if !matches!(stat, Stat::Lse | Stat::Logp) {
                return value(format!("stats: {:?}, expected lse or logp", stat.name()));
            }
        }
        if rows.softcap != 0.0 || rows.reference.is_some() || rows.logits.dtype != Dtype::F32 {
            return value("rows: expected f32 logits without softcap and reference".into());
        }
        let features = self.hidden.shape.last().copied().unwrap_or(0);
        for (name, view, length) in [
            ("hidden", self.hidden, rows.count()),
            ("weight", self.weight, rows.width()),
        ] {
            if view.dtype != Dtype::Bf16 {
                let given = view.dtype.name();
                return Err(ArgumentError::Type(format!(
                    "{name}: dtype {given}, expected bf16"
                )));
            }
            check_shape(
                name,
                view,
                &[length, features],
                "[rows or classes, features]",
            )?;
            if features > 1 && view.strides[1] != 1 {
                return value(format!(
                    "{name}: expected rows whose elements lie next to each other"
                ));
            }
        }
        if let Some(bias) = self.bias {
            check_shape("bias", bias, &[rows.width()], "the number of classes")?;
            if bias.dtype != Dtype::F32 || !bias.is_contiguous() {
                return Err(ArgumentError::Type("bias: expected contiguous f32".into()));
            }
        }
        Ok(())
    }
}

/// What a chunk of classes leaves behind of a group of tokens.
struct Chunk {
    max: Vec<[f32; BLOCK]>,
    mass: Vec<[f32; BLOCK]>,
    /// (token of the group, its label's logit) where the label is in the chunk.
    labels: Vec<(usize, f32)>,
}

struct Call<'a> {
    rows: &'a Rows,
    product: &'a Product<'a>,
    level: Level,
    /// Steps of the tiles over all features.
    steps: usize,
    /// The hidden states of the live rows: by block of tokens, by step, two tiles with pairs of features down their columns.
    tokens: Vec<Line>,
    /// scale/T of each token.
    factors: Vec<[f32; BLOCK]>,
    /// (label, live row), by block of classes and then by row.
    labels: Vec<(usize, usize)>,
    /// Blocks of tokens in a group.
    group: usize,
    groups: usize,
    chunks: usize,
}

/// Pointer to a row of bf16 pairs' halves.
fn row_of(view: &Array, row: usize) -> *const bf16 {
    view.pointer::<bf16>(row as isize * view.strides[0])
        .cast_const()
}

impl<'a> Call<'a> {
    fn new(rows: &'a Rows, product: &'a Product<'a>, live: &[LiveRow], level: Level) -> Call<'a> {
        let features = product.hidden.shape[1];
        let steps = features.div_ceil(FEATURES);
        let blocks = live.len().div_ceil(BLOCK);
        let largest = (GROUP_BYTES / (steps.max(1) * STEP * LINE)).max(8);
        let groups = blocks.div_ceil(largest);
        let mut factors = vec![[1.0; BLOCK]; blocks];
        let mut labels = Vec::new();
        let mut tokens = vec![Line::ZERO; blocks * steps * STEP];
        for (place, row) in live.iter().enumerate() {
            let (block, token) = (place / BLOCK, place % BLOCK);
            factors[block][token] = (rows.scale / row.temperature) as f32;
            labels.extend(row.label.map(|label| (label, place)));
            let source = row_of(product.hidden, row.index);
            for feature in 0..features {
                // SAFETY: the row has the feature.
                let bits = unsafe { source.add(feature).read_unaligned() }.to_bits();
                let (step, pair) = (feature / FEATURES, feature % FEATURES / 2);
                let line = (block * steps + step) * STEP + token / LANES * 16 + pair;
                tokens[line].0[token % LANES] |= u32::from(bits) << (feature % 2 * 16);
            }
        }
        labels.sort_unstable_by_key(|(label, place)| (label / BLOCK, *place));
        Call {
            rows,
            product,
            level,
            steps,
            tokens,
            factors,
            labels,
            group: blocks.div_ceil(groups.max(1)).max(1),
            groups,
            chunks: rows.width().div_ceil(CHUNK),
        }
    }

    /// Multiplies a group of tokens with a chunk of classes.
    ///
    /// # Safety
    /// The promise of [`forward`].
    unsafe fn chunk(&self, group: usize, chunk: usize) -> Chunk {
        let blocks = self.factors.len();
        let tokens = group * self.group..blocks.min((group + 1) * self.group);
        let classes = chunk * CHUNK..self.rows.width().min((chunk + 1) * CHUNK);
        let mut found = Chunk {
            max: vec![[f32::NEG_INFINITY; BLOCK]; tokens.len()],
            mass: vec![[0.0; BLOCK]; tokens.len()],
            labels: Vec::new(),
        };
        dispatch(
            self.level,
            Sweep {
                call: self,
                tokens,
                classes,
                found: &mut found,
            },
        );
        found
    }

    /// Packs the rows of a block of the weight, zeros where there are none: by step, two tiles.
    ///
    /// # Safety
    /// The promise of [`forward`].
    #[inline(always)]
    unsafe fn pack(&self, classes: &Range<usize>, packed: &mut [Line]) {
        let features = self.product.weight.shape[1];
        if !features.is_multiple_of(FEATURES) || classes.len() < BLOCK {
            packed.fill(Line::ZERO);
        }
        for row in 0..classes.len() {
            let source = row_of(self.product.weight, classes.start + row);
            for step in 0..features / FEATURES {
                // SAFETY: the row has so many features from here on.
                let line = unsafe {
                    source
                        .add(step * FEATURES)
                        .cast::<[u32; 16]>()
                        .read_unaligned()
                };
                packed[step * STEP + row] = Line(line);
            }
            let (whole, rest) = (features / FEATURES, features % FEATURES);
            if rest > 0 {
                let line = packed[whole * STEP + row].0.as_mut_ptr().cast();
                // SAFETY: as above; a line has more than the rest.
                unsafe {
                    source
                        .add(whole * FEATURES)
                        .copy_to_nonoverlapping(line, rest)
                };
            }
        }
    }

    /// Asks for a share of the block of classes that comes after `classes`.
    #[inline(always)]
    fn prefetch(&self, classes: &Range<usize>, end: usize, (part, parts): (usize, usize)) {
        let next = classes.end..end.min(classes.end + BLOCK);
        let weight = self.product.weight;
        let lines = next.len() * weight.shape[1] * size_of::<bf16>() / LINE;
        let share = lines.div_ceil(parts);
        let begin = row_of(weight, next.start);
        for line in part * share..lines.min((part + 1) * share) {
            prefetch::<false, _>(begin.wrapping_byte_add(line * LINE));
        }
    }

    /// The labels in a block of classes, of a range of live rows.
    fn labels_in(&self, block: usize, places: Range<usize>) -> &[(usize, usize)] {
        let before = |row: usize| {
            self.labels
                .partition_point(|(label, place)| (label / BLOCK, *place) < (block, row))
        };
        &self.labels[before(places.start)..before(places.end)]
    }

    /// Writes the statistics of a row, from its token of each chunk.
    ///
    /// # Safety
    /// The promise of [`forward`].
    unsafe fn write(
        &self,
        stats: &[Stat],
        out: &Array,
        (row, token): (&LiveRow, usize),
        chunks: &[OnceLock<Chunk>],
    ) {
        let transform = Transform::of(self.rows, row);
        let factor = f64::from(transform.factor as f32);
        let (mut state, mut logit) = (Row::new(), None);
        for chunk in chunks.iter().filter_map(OnceLock::get) {
            let of = |values: &[[f32; BLOCK]]| f64::from(values[token / BLOCK][token % BLOCK]);
            state.add(&ChunkResult {
                policy: Partial {
                    max: of(&chunk.max) * factor,
                    sums: ChunkSums {
                        mass: of(&chunk.mass),
                        weighted: 0.0,
                        squares: 0.0,
                    },
                    total: 0.0,
                },
                reference: None,
                outranked: false,
            });
            let own = chunk
                .labels
                .binary_search_by_key(&token, |(token, _)| *token);
            logit = own.ok().map(|at| chunk.labels[at].1).or(logit);
        }
        let z = logit.map_or(f64::NEG_INFINITY, |x| {
            transform.apply::<f32>(self.level, f64::from(x)).0
        });
        for (position, stat) in stats.iter().enumerate() {
            let value = match stat {
                Stat::Logp => state.log_p(z),
                _ => state.lse(),
            };
            let place = (position * self.rows.count() + row.index) as isize;
            // SAFETY: a table of [stats, rows] f32.
            unsafe { out.pointer::<f32>(place).write_unaligned(value as f32) };
        }
    }
}

/// A group of tokens times a chunk of classes.
struct Sweep<'a> {
    call: &'a Call<'a>,
    /// Blocks of tokens.
    tokens: Range<usize>,
    classes: Range<usize>,
    found: &'a mut Chunk,
}

/// A block whose exponentials are being added up.
struct Pending<V> {
    /// Its block of tokens, as a place in the chunk's results.
    block: usize,
    /// Its number of classes, and how many are through.
    classes: usize,
    through: usize,
    origin: [V; MAX_PARTS],
    factor: [V; MAX_PARTS],
    mass: [V; MAX_PARTS],
    /// What the sums up to now are, from the new origin.
    before: [V; MAX_PARTS],
}

#[inline(always)]
fn load<V: Memory<f32>>(values: &[f32]) -> V {
    // SAFETY: whoever calls this has a vector's worth of elements.
    unsafe { V::load(values.as_ptr()) }
}

/// The logits of one class for one of the vectors of tokens.
#[inline(always)]
fn tokens_of<V: Vector>(block: &mut Block, class: usize, part: usize) -> &mut [f32] {
    let token = part * V::LANES;
    &mut block.0[token / LANES * BLOCK + class][token % LANES..]
}

impl<V: Vector<Scalar = f32> + Memory<f32>> Pending<V> {
    /// Vectors over the tokens of a block.
    const PARTS: usize = BLOCK / V::LANES;

    /// Of no classes.
    #[inline(always)]
    fn nothing() -> Self {
        let zeros = [V::splat(0.0); MAX_PARTS];
        Pending {
            block: 0,
            classes: 0,
            through: 0,
            origin: zeros,
            factor: zeros,
            mass: zeros,
            before: zeros,
        }
    }

    /// Adds up to `count` more classes of `block`, which are at least `self.classes`.
    #[inline(always)]
    fn add(&mut self, block: &Block, count: usize) {
        let end = self.classes.min(self.through + count);
        let mut mass = self.mass;
        for class in self.through..end {
            for (part, sum) in mass[..Self::PARTS].iter_mut().enumerate() {
                let (half, token) = (part * V::LANES / LANES, part * V::LANES % LANES);
                // SAFETY: a block has so many lines in each half, and a line so many tokens.
                let x = unsafe {
                    let line = block.0.as_ptr().add(half * BLOCK + class);
                    V::load(line.cast::<f32>().add(token))
                };
                let exponent = x.sub(self.origin[part]).mul(self.factor[part]);
                *sum = Exp::in_sum(exponent).add_to(*sum);
            }
        }
        self.mass = mass;
        self.through = end;
    }

    /// Adds the rest, and keeps the sums.
    #[inline(always)]
    fn finish(mut self, block: &Block, found: &mut Chunk) {
        self.add(block, BLOCK);
        for part in 0..Self::PARTS {
            let total = self.before[part].add(self.mass[part]);
            let target = &mut found.mass[self.block][part * V::LANES..];
            // SAFETY: a part of the tokens is a vector.
            unsafe { Memory::<f32>::store(total, target.as_mut_ptr()) };
        }
    }

    /// Takes a block that has just been made: its maximum becomes the origin of its tokens' sums.
    #[inline(always)]
    fn new(
        values: &mut Block,
        (block, classes): (usize, usize),
        factors: &[f32; BLOCK],
        found: &mut Chunk,
    ) -> Self {
        let mut pending = Pending {
            block,
            classes,
            ..Pending::nothing()
        };
        for part in 0..Self::PARTS {
            let lanes = part * V::LANES..(part + 1) * V::LANES;
            let (max, mass) = (
                &mut found.max[block][lanes.clone()],
                &found.mass[block][lanes.clone()],
            );
            let old: V = load(max);
            let mut most = old;
            for class in 0..classes {
                most = load::<V>(tokens_of::<V>(values, class, part)).larger(most);
            }
            // SAFETY: a part of the tokens is a vector.
            unsafe { Memory::<f32>::store(most, max.as_mut_ptr()) };
            // Nothing but −inf is measured from 0.
            let origin = most.or_zero(most.not_equal(V::splat(f32::NEG_INFINITY)));
            let factor: V = load(&factors[lanes]);
            let moved = Exp::in_sum(old.sub(origin).mul(factor)).value();
            pending.origin[part] = origin;
            pending.factor[part] = factor;
            pending.before[part] = moved.mul(load(mass));
        }
        pending
    }
}

impl Kernel for Sweep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        if available() {
            self.through::<I, TileSums>();
        } else {
            self.through::<I, PlainSums>();
        }
    }
}

impl Sweep<'_> {
    #[inline(always)]
    fn through<I: Isa, S: Sums>(self) {
        let (call, steps) = (self.call, self.call.steps);
        // SAFETY: `run` has looked.
        let registers = unsafe { S::registers() };
        let mut packed = vec![Line::ZERO; steps * STEP];
        let [mut one, mut other] = [[[0.0; LANES]; 2 * BLOCK]; 2].map(Block);
        let (mut current, mut before) = (&mut one, &mut other);
        let mut pending = Pending::<I::F32>::nothing();
        let each = BLOCK.div_ceil(steps.max(1));
        for start in self.classes.clone().step_by(BLOCK) {
            let classes = start..self.classes.end.min(start + BLOCK);
            // SAFETY: passed on to the caller.
            unsafe { call.pack(&classes, &mut packed) };
            let rows = self.tokens.start * BLOCK..self.tokens.end * BLOCK;
            let mut labels = call.labels_in(start / BLOCK, rows);
            for block in self.tokens.clone() {
                let place = block - self.tokens.start;
                let mut sums = S::new(&registers);
                for step in 0..steps {
                    // SAFETY: both have as many lines for each step.
                    unsafe {
                        let right = call.tokens.as_ptr().add((block * steps + step) * STEP);
                        sums.add(packed.as_ptr().add(step * STEP), right);
                    }
                    pending.add(before, each);
                }
                call.prefetch(&classes, self.classes.end, (place, self.tokens.len()));
                sums.write(&mut current.0);
                pending.finish(before, self.found);
                if let Some(bias) = call.product.bias {
                    add_bias::<I::F32>(current, bias, &classes);
                }
                while let [(label, row), rest @ ..] = labels
                    && row / BLOCK == block
                {
                    let token = row % BLOCK;
                    let logit = current.0[token / LANES * BLOCK + label - start][token % LANES];
                    self.found.labels.push((place * BLOCK + token, logit));
                    labels = rest;
                }
                let made = (place, classes.len());
                let factors = &call.factors[block];
                pending = Pending::new(current, made, factors, self.found);
                std::mem::swap(&mut current, &mut before);
            }
        }
        pending.finish(before, self.found);
        self.found.labels.sort_unstable_by_key(|(token, _)| *token);
    }
}

/// Adds each class's bias to its logits.
#[inline(always)]
fn add_bias<V: Vector<Scalar = f32> + Memory<f32>>(
    block: &mut Block,
    bias: &Array,
    classes: &Range<usize>,
) {
    for (row, class) in classes.clone().enumerate() {
        // SAFETY: one per class.
        let own = V::splat(unsafe { bias.pointer::<f32>(class as isize).read_unaligned() });
        for part in 0..Pending::<V>::PARTS {
            let line = tokens_of::<V>(block, row, part);
            // SAFETY: a part of the tokens is a vector.
            unsafe { Memory::<f32>::store(load::<V>(line).add(own), line.as_mut_ptr()) };
        }
    }
}
