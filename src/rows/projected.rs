//! Statistics of logits that are never written: of bf16 hidden states times a bf16 weight, in f32.
//!
//! Blocks of 32 classes by 32 tokens are made by the best that a machine has (`simd::products`), the classes down the rows, so
//! that a vector holds tokens of one class. While matrix tiles make one block, the vector units add up the exponentials of the
//! block before: a sum for each token, measured from the largest logit of the blocks before, which is one chunk's when [`CHUNK`] classes are
//! through. Chunks come together as those of the rows do, in f64 and in order, so results depend neither on threads nor on other tokens.
//!
//! Per block of H features: H/32 steps of four tile products (64 cycles), beside them 64 vectors of exponentials (about 6.5
//! cycles each). The hidden states are packed once; the weight is read once for each group of tokens.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use half::bf16;

use super::chunk::Mass;
use super::combine::{ChunkResult, Partial, Row};
use super::cpu::Transform;
use super::exp::Exp;
use super::lists::{self, Candidates, Hashes, List, Lists, PerRow, Sampling};
use super::{LiveRow, Rows, Stat, check_shape};
use crate::array::{ArgumentError, Array, Dtype};
use crate::simd::products::{self, Line, STEP, Sums, WithSums, with_sums};
use crate::simd::{Isa, Level, MAX_LANES, Memory, Vector, dispatch, prefetch};
use crate::threads::for_each_range;

/// Classes and tokens of a block.
const BLOCK: usize = 32;
/// Tokens of a line of a block.
const LANES: usize = BLOCK / 2;
/// Vectors over the tokens of a block, at most.
const MAX_PARTS: usize = 4;
/// Classes that one maximum and one sum stand for.
const CHUNK: usize = 2048;
/// Pairs of classes of a block.
const PAIRS: usize = BLOCK / 2;
/// Steps at the end of a block beside which nothing is added up.
const LAST_STEPS: usize = 2;
/// How far above its origin the exponent of a term may be: neither it nor its error gets large.
const MOST_RISE: f32 = 16.0;
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

/// Whether it is known to be fast on this machine. Elsewhere the same is computed.
pub fn available() -> bool {
    Level::current().is_ok_and(|level| level >= Level::Avx2)
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
    unsafe {
        let live = rows.live()?;
        let packed = Packed::new(rows, product.hidden, &live, level);
        let call = Call::new((rows, product), (&packed, labels_of(&live)), level, None);
        let done = call.run(threads);
        call.write_all(stats, out, &live, &done);
    }
    Ok(())
}

/// Lists the probabilities of the rows as [`super::lists::lists`] does, to the bit what that makes of the same f32 logits
/// and the same log-sum-exp; the statistics go into `table`.
///
/// A class is a candidate where its probability would be listed if the log-sum-exp were no more than what is known of it
/// when its logit is there, from [`Likely`] classes and the chunks that are through: it only grows. Which of them are listed
/// is seen when it is known.
///
/// # Safety
/// As for [`forward`]; `table` and the arrays of `per_row` are as there.
pub unsafe fn lists(
    rows: &Rows,
    stats: &[Stat],
    product: &Product<'_>,
    table: &Array,
    per_row: &PerRow<'_>,
    sampling: Sampling,
    threads: usize,
) -> Result<Lists, ArgumentError> {
    rows.check_forward(stats, 1, table)?;
    product.check(rows, stats)?;
    lists::check(rows, stats, per_row, sampling)?;
    let level = Level::current()?;
    // SAFETY: the caller's promise, and the checks above.
    unsafe {
        let live = rows.live()?;
        let packed = Packed::new(rows, product.hidden, &live, level);
        let mut listing = Listing::new(rows, (per_row, sampling), &live);
        let likely = Likely::new(product, &live);
        likely.expect(
            (rows, product),
            (&packed, &live),
            level,
            threads,
            &mut listing,
        );
        let labels = labels_of(&live);
        let call = Call::new((rows, product), (&packed, labels), level, Some(listing));
        let done = call.run(threads);
        let Some(listing) = &call.listing else {
            unreachable!("it was given")
        };
        call.clear(table);
        per_row.clear_labels();
        let found: Vec<OnceLock<List>> = live.iter().map(|_| OnceLock::new()).collect();
        for_each_range(threads, packed.factors.len(), 1, |blocks| {
            let mut candidates = [(); BLOCK].map(|()| Gathered::default());
            for block in blocks {
                call.gather(block, &done, &mut candidates);
                let places = block * BLOCK..live.len().min((block + 1) * BLOCK);
                for (place, candidates) in places.zip(&mut candidates) {
                    let row = &live[place];
                    let of_row = call.row((row, place), call.chunks_of(block, &done));
                    call.write(stats, table, row, of_row);
                    found[place]
                        .get_or_init(|| call.list((per_row, listing), row, of_row, candidates));
                }
            }
        });
        let lists = found
            .into_iter()
            .map(|list| list.into_inner().unwrap_or_default());
        Ok(Lists::new(rows.count(), &live, lists.collect()))
    }
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
    /// Logits that the sums are measured from.
    origin: Vec<[f32; BLOCK]>,
    mass: Vec<[f32; BLOCK]>,
    /// (token of the group, its label's logit) where the label is in the chunk.
    labels: Vec<(usize, f32)>,
    /// What may be listed: by block of classes, by block of tokens, by class.
    candidates: Vec<Candidate>,
    /// Where those of each of these blocks end.
    ends: Vec<usize>,
}

/// A logit that may be listed: its class of the chunk and its token of the block.
#[derive(Clone, Copy)]
struct Candidate {
    logit: f32,
    class: u16,
    token: u16,
}

/// The candidates of a token, by class.
#[derive(Default)]
struct Gathered {
    classes: Vec<u32>,
    logits: Vec<f32>,
}

/// What tells which classes may be listed.
struct Listing {
    eps: f64,
    /// eps/2^32
    unit: f32,
    hashes: Hashes,
    /// By blocks of live rows.
    tokens: Vec<Tokens>,
    /// log Σ e^z over the chunks that are through, or less, of each token.
    known: Vec<AtomicU32>,
}

/// Of a block of tokens: their hashes, and log Σ e^z over some classes, or less.
#[derive(Clone)]
struct Tokens {
    hashes: [u32; BLOCK],
    least: [f32; BLOCK],
}

impl Tokens {
    /// Where there is no token everything is below what is known.
    const NONE: Tokens = Tokens {
        hashes: [0; BLOCK],
        least: [f32::INFINITY; BLOCK],
    };

    /// Their hashes together with that of a class.
    #[inline(always)]
    fn hashes(&self, of_class: u32) -> [f32; BLOCK] {
        let mut hashes = [0.0; BLOCK];
        // A plain loop, which the compiler makes vectors of; not of an iterator's.
        let mut token = 0;
        while token < BLOCK {
            hashes[token] = self.hashes[token].wrapping_add(of_class) as f32;
            token += 1;
        }
        hashes
    }
}

impl Listing {
    /// What is known of some blocks of tokens now.
    fn known(&self, tokens: &Range<usize>) -> Vec<[f32; BLOCK]> {
        let mut known = vec![[0.0; BLOCK]; tokens.len()];
        let values = &self.known[tokens.start * BLOCK..tokens.end * BLOCK];
        for (known, value) in known.as_flattened_mut().iter_mut().zip(values) {
            *known = f32::from_bits(value.load(Ordering::Relaxed));
        }
        known
    }
}

/// Candidates of a block that are entered at a time.
const SPECULATIVE: usize = 6;

/// What a candidate's probability may be off by, relative.
const MARGIN: f32 = 1e-3;

impl Listing {
    /// # Safety
    /// The promise of [`lists`].
    unsafe fn new(
        rows: &Rows,
        (per_row, sampling): (&PerRow<'_>, Sampling),
        live: &[LiveRow],
    ) -> Listing {
        let blocks = live.len().div_ceil(BLOCK);
        let mut listing = Listing {
            eps: sampling.eps,
            unit: (sampling.eps / (1u64 << 32) as f64) as f32 * (1.0 - MARGIN),
            hashes: lists::hashes_of(rows, sampling),
            tokens: vec![Tokens::NONE; blocks],
            known: Vec::new(),
        };
        listing.known.resize_with(blocks * BLOCK, || {
            AtomicU32::new(f32::NEG_INFINITY.to_bits())
        });
        for (place, row) in live.iter().enumerate() {
            let (block, token) = (place / BLOCK, place % BLOCK);
            // SAFETY: passed on to the caller; there is one per row.
            let number = unsafe { per_row.numbers.read_i64(row.index) };
            let of_block = &mut listing.tokens[block];
            of_block.hashes[token] = listing.hashes.of_row(number);
            of_block.least[token] = f32::NEG_INFINITY;
        }
        listing
    }
}

/// The classes that are most often labels, at most one of [`SELDOM`]: what is likely for one token is for others. Multiplied
/// before all others they tell how much a probability has to be at least, so that few are entered that are not listed.
struct Likely {
    /// Their rows of the weight, one behind the other, and their biases.
    weight: Vec<bf16>,
    bias: Vec<f32>,
    count: usize,
}

/// Classes for each likely one.
const SELDOM: usize = 64;

impl Likely {
    /// # Safety
    /// The promise of [`lists`].
    unsafe fn new(product: &Product<'_>, live: &[LiveRow]) -> Likely {
        let mut labels: Vec<usize> = live.iter().filter_map(|row| row.label).collect();
        labels.sort_unstable();
        let mut counted: Vec<(usize, usize)> = labels
            .chunk_by(|one, next| one == next)
            .map(|same| (same.len(), same[0]))
            .collect();
        counted.sort_unstable_by_key(|(count, label)| (std::cmp::Reverse(*count), *label));
        counted.truncate(product.weight.shape[0] / SELDOM);
        let features = product.weight.shape[1];
        let (mut weight, mut bias) = (Vec::with_capacity(counted.len() * features), Vec::new());
        for (_, class) in &counted {
            // SAFETY: a label is a class, whose row has so many elements next to each other; and there is a bias for each.
            unsafe {
                let row = row_of(product.weight, *class);
                weight.extend((0..features).map(|at| row.add(at).read_unaligned()));
                bias.extend(
                    product
                        .bias
                        .map(|bias| bias.pointer::<f32>(*class as isize).read_unaligned()),
                );
            }
        }
        Likely {
            weight,
            bias,
            count: counted.len(),
        }
    }

    /// Tells a listing what these classes make of each token.
    ///
    /// # Safety
    /// The promise of [`lists`].
    unsafe fn expect(
        &self,
        (rows, product): (&Rows, &Product<'_>),
        (packed, live): (&Packed, &[LiveRow]),
        level: Level,
        threads: usize,
        listing: &mut Listing,
    ) {
        let features = product.weight.shape[1];
        let (shape, steps) = ([self.count, features], [features as isize, 1]);
        // SAFETY: the memory is this struct's.
        let arrays = unsafe {
            (
                Array::new(self.weight.as_ptr() as usize, Dtype::Bf16, &shape, &steps),
                Array::new(self.bias.as_ptr() as usize, Dtype::F32, &shape[..1], &[1]),
            )
        };
        let (Ok(weight), Ok(bias)) = arrays else {
            return;
        };
        let product = Product {
            hidden: product.hidden,
            weight: &weight,
            bias: product.bias.map(|_| &bias),
        };
        let call = Call::new((rows, &product), (packed, Vec::new()), level, None);
        // SAFETY: passed on to the caller.
        let done = unsafe { call.run(threads) };
        for (place, row) in live.iter().enumerate() {
            let (block, token) = (place / BLOCK, place % BLOCK);
            let (state, _) = call.row((row, place), call.chunks_of(block, &done));
            listing.tokens[block].least[token] = below(state.mass().lse() as f32);
        }
    }
}

/// A little less than a z.
fn below(z: f32) -> f32 {
    z - (MARGIN + z.abs() * 1e-6)
}

/// The hidden states of the live rows as products take them.
struct Packed {
    /// Steps over all features.
    steps: usize,
    /// By block of tokens, by step, what multiplies a block of classes.
    lines: Vec<Line>,
    /// scale/T of each token.
    factors: Vec<[f32; BLOCK]>,
    /// Blocks of tokens in a group.
    group: usize,
    groups: usize,
}

struct Call<'a> {
    rows: &'a Rows,
    product: &'a Product<'a>,
    level: Level,
    packed: &'a Packed,
    /// (label, live row), by block of classes and then by row.
    labels: Vec<(usize, usize)>,
    chunks: usize,
    listing: Option<Listing>,
    /// How many candidates a chunk had.
    expected: AtomicUsize,
}

/// Pointer to a row of bf16 pairs' halves.
fn row_of(view: &Array, row: usize) -> *const bf16 {
    view.pointer::<bf16>(row as isize * view.strides[0])
        .cast_const()
}

/// (label, live row) of those that have one, by block of classes and then by row.
fn labels_of(live: &[LiveRow]) -> Vec<(usize, usize)> {
    let places = live.iter().enumerate();
    let mut labels: Vec<_> = places
        .filter_map(|(place, row)| Some((row.label?, place)))
        .collect();
    labels.sort_unstable_by_key(|(label, place)| (label / BLOCK, *place));
    labels
}

/// Packs hidden states for the sums that it is called with.
struct Pack<'a> {
    rows: &'a Rows,
    hidden: &'a Array,
    live: &'a [LiveRow],
}

impl WithSums for Pack<'_> {
    type Output = Packed;

    #[inline(always)]
    fn run<I: Isa, S: Sums>(self) -> Packed {
        // SAFETY: the promise of `Packed::new`.
        unsafe { Packed::of::<S>(self.rows, self.hidden, self.live) }
    }
}

impl Packed {
    /// # Safety
    /// The promise of [`forward`].
    unsafe fn new(rows: &Rows, hidden: &Array, live: &[LiveRow], level: Level) -> Packed {
        with_sums(level, Pack { rows, hidden, live })
    }

    /// # Safety
    /// The promise of [`forward`].
    #[inline(always)]
    unsafe fn of<S: Sums>(rows: &Rows, hidden: &Array, live: &[LiveRow]) -> Packed {
        let features = hidden.shape[1];
        let steps = features.div_ceil(features_of::<S>());
        let blocks = live.len().div_ceil(BLOCK);
        let largest = (GROUP_BYTES / (steps.max(1) * STEP * LINE)).max(8);
        let groups = blocks.div_ceil(largest);
        let mut factors = vec![[1.0; BLOCK]; blocks];
        let mut lines = vec![Line::ZERO; blocks * steps * STEP];
        for (place, row) in live.iter().enumerate() {
            let (block, token) = (place / BLOCK, place % BLOCK);
            factors[block][token] = (rows.scale / row.temperature) as f32;
            let source = row_of(hidden, row.index);
            for feature in 0..features {
                // SAFETY: the row has the feature.
                let value = unsafe { source.add(feature).read_unaligned() };
                let (step, place) = (
                    feature / features_of::<S>(),
                    feature % features_of::<S>() / S::TERMS,
                );
                let line = (block * steps + step) * STEP + token / LANES * 16 + place;
                lines[line].0[token % LANES] |= products::place::<S>(feature, value);
            }
        }
        Packed {
            steps,
            lines,
            factors,
            group: blocks.div_ceil(groups.max(1)).max(1),
            groups,
        }
    }
}

impl<'a> Call<'a> {
    fn new(
        (rows, product): (&'a Rows, &'a Product<'a>),
        (packed, labels): (&'a Packed, Vec<(usize, usize)>),
        level: Level,
        listing: Option<Listing>,
    ) -> Call<'a> {
        Call {
            rows,
            product,
            level,
            packed,
            labels,
            chunks: product.weight.shape[0].div_ceil(CHUNK),
            listing,
            expected: AtomicUsize::new(0),
        }
    }

    /// All groups of tokens times all chunks of classes: the chunks of a group one behind the other.
    ///
    /// # Safety
    /// The promise of [`forward`].
    unsafe fn run(&self, threads: usize) -> Vec<OnceLock<Chunk>> {
        let tasks = self.packed.groups * self.chunks;
        let done: Vec<OnceLock<Chunk>> = (0..tasks).map(|_| OnceLock::new()).collect();
        for_each_range(threads, tasks, 1, |range| {
            for task in range {
                // SAFETY: passed on to the caller.
                done[task]
                    .get_or_init(|| unsafe { self.chunk(task / self.chunks, task % self.chunks) });
            }
        });
        done
    }

    /// Those of the group that a block of tokens is in.
    fn chunks_of<'c>(&self, block: usize, done: &'c [OnceLock<Chunk>]) -> &'c [OnceLock<Chunk>] {
        let group = block / self.packed.group;
        &done[group * self.chunks..(group + 1) * self.chunks]
    }

    /// Writes the statistics of all rows, 0 where one is not live.
    ///
    /// # Safety
    /// The promise of [`forward`].
    unsafe fn write_all(
        &self,
        stats: &[Stat],
        out: &Array,
        live: &[LiveRow],
        done: &[OnceLock<Chunk>],
    ) {
        // SAFETY: `out` is a contiguous table of [stats, rows], as was checked.
        unsafe {
            self.clear(out);
            for (place, row) in live.iter().enumerate() {
                let of_row = self.row((row, place), self.chunks_of(place / BLOCK, done));
                self.write(stats, out, row, of_row);
            }
        }
    }

    /// # Safety
    /// `out` is contiguous, and may be written.
    unsafe fn clear(&self, out: &Array) {
        // SAFETY: passed on to the caller.
        unsafe { (out.address as *mut u8).write_bytes(0, out.len() * out.dtype.size()) };
    }

    /// Multiplies a group of tokens with a chunk of classes.
    ///
    /// # Safety
    /// The promise of [`forward`].
    unsafe fn chunk(&self, group: usize, chunk: usize) -> Chunk {
        let blocks = self.packed.factors.len();
        let tokens = group * self.packed.group..blocks.min((group + 1) * self.packed.group);
        let width = self.product.weight.shape[0];
        let classes = chunk * CHUNK..width.min((chunk + 1) * CHUNK);
        let mut found = Chunk {
            max: vec![[f32::NEG_INFINITY; BLOCK]; tokens.len()],
            origin: vec![[0.0; BLOCK]; tokens.len()],
            mass: vec![[0.0; BLOCK]; tokens.len()],
            labels: Vec::new(),
            candidates: Vec::with_capacity(self.expected.load(Ordering::Relaxed)),
            ends: Vec::new(),
        };
        let sweep = Sweep {
            call: self,
            tokens: tokens.clone(),
            classes,
            found: &mut found,
        };
        match &self.listing {
            None => with_sums(self.level, Plain(sweep)),
            Some(listing) => {
                with_sums(self.level, Listed(sweep));
                self.learn(listing, &tokens, &found);
                let some_more = found.candidates.len() / 8 + BLOCK * BLOCK;
                let expected = found.candidates.len() + some_more;
                self.expected.fetch_max(expected, Ordering::Relaxed);
            }
        }
        found
    }

    /// Adds a chunk to what is known of the tokens' log-sum-exps.
    fn learn(&self, listing: &Listing, tokens: &Range<usize>, found: &Chunk) {
        let values = found
            .origin
            .as_flattened()
            .iter()
            .zip(found.mass.as_flattened());
        let known = &listing.known[tokens.start * BLOCK..tokens.end * BLOCK];
        let factors = self.packed.factors[tokens.clone()].as_flattened();
        for (((origin, mass), known), factor) in values.zip(known).zip(factors) {
            let own = below(origin * factor + mass.ln());
            let add = |old: u32| {
                let old = f32::from_bits(old);
                let (low, high) = (own.min(old), own.max(old));
                let sum = below(high + (low - high).exp().ln_1p());
                sum.is_finite().then(|| sum.max(high).to_bits())
            };
            let _ = known.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }

    /// Packs the rows of a block of the weight, zeros where there are none.
    ///
    /// # Safety
    /// The promise of [`forward`].
    #[inline(always)]
    unsafe fn pack<S: Sums>(&self, classes: &Range<usize>, packed: &mut [Line]) {
        let features = self.product.weight.shape[1];
        let each = features_of::<S>();
        let (whole, rest) = (features / each, features % each);
        if rest > 0 || classes.len() < BLOCK {
            packed.fill(Line::ZERO);
        }
        for row in 0..classes.len() {
            let source = row_of(self.product.weight, classes.start + row);
            for step in 0..whole {
                // SAFETY: the row has so many features from here on.
                packed[step * STEP + row] = unsafe { products::line::<S>(source.add(step * each)) };
            }
            if rest > 0 {
                let mut last = [bf16::ZERO; BLOCK];
                // SAFETY: as above; a line has no more than a block's classes.
                packed[whole * STEP + row] = unsafe {
                    source
                        .add(whole * each)
                        .copy_to_nonoverlapping(last.as_mut_ptr(), rest);
                    products::line::<S>(last.as_ptr())
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

    /// A row as its chunks leave it, and z of its label.
    fn row(&self, (row, place): (&LiveRow, usize), chunks: &[OnceLock<Chunk>]) -> (Row, f64) {
        let transform = Transform::of(self.rows, row);
        let token = place % (self.packed.group * BLOCK);
        let factor = f64::from(transform.factor as f32);
        let (mut state, mut logit) = (Row::new(), None);
        for chunk in chunks.iter().filter_map(OnceLock::get) {
            let of = |values: &[[f32; BLOCK]]| f64::from(values[token / BLOCK][token % BLOCK]);
            let origin = if of(&chunk.max) == f64::NEG_INFINITY {
                f64::NEG_INFINITY
            } else {
                of(&chunk.origin) * factor
            };
            state.add(&ChunkResult {
                mass: Mass::from_largest(origin, of(&chunk.mass)),
                policy: Partial::NOTHING,
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
        (state, z)
    }

    /// Writes the statistics of a row.
    ///
    /// # Safety
    /// The promise of [`forward`].
    unsafe fn write(&self, stats: &[Stat], out: &Array, row: &LiveRow, (state, z): (Row, f64)) {
        for (position, stat) in stats.iter().enumerate() {
            let value = match stat {
                Stat::Logp => state.mass().log_p(z),
                _ => state.mass().lse(),
            };
            let place = (position * self.rows.count() + row.index) as isize;
            // SAFETY: a table of [stats, rows] f32.
            unsafe { out.pointer::<f32>(place).write_unaligned(value as f32) };
        }
    }
}

impl Call<'_> {
    /// Puts the candidates of a block of tokens in the place of others.
    fn gather(&self, block: usize, done: &[OnceLock<Chunk>], gathered: &mut [Gathered; BLOCK]) {
        for of_token in gathered.iter_mut() {
            of_token.classes.clear();
            of_token.logits.clear();
        }
        let chunks = self.chunks_of(block, done);
        for (chunk, found) in chunks.iter().filter_map(OnceLock::get).enumerate() {
            let blocks = found.max.len();
            for own in (block % self.packed.group..found.ends.len()).step_by(blocks) {
                let begin = own.checked_sub(1).map_or(0, |before| found.ends[before]);
                for candidate in &found.candidates[begin..found.ends[own]] {
                    let of_token = &mut gathered[usize::from(candidate.token) % BLOCK];
                    let class = (chunk * CHUNK) as u32 + u32::from(candidate.class);
                    of_token.classes.push(class);
                    of_token.logits.push(candidate.logit);
                }
            }
        }
    }

    /// Lists a live row from its candidates, and writes what belongs to its label.
    ///
    /// # Safety
    /// The promise of [`lists`].
    unsafe fn list(
        &self,
        (per_row, listing): (&PerRow<'_>, &Listing),
        row: &LiveRow,
        (state, z): (Row, f64),
        Gathered { classes, logits }: &mut Gathered,
    ) -> List {
        let lse = state.mass().lse();
        if lse == f64::NEG_INFINITY {
            return List::default(); // nothing but -inf: the gradient is 0
        }
        let transform = Transform::of(self.rows, row);
        let unit = self.rows.scale / row.temperature;
        // SAFETY: passed on to the caller.
        let number = unsafe {
            if row.label.is_some() {
                per_row.write_label::<f32>(row.index, unit, state.mass().log_p(z));
            }
            per_row.numbers.read_i64(row.index)
        };
        if lse.is_nan() {
            return List::of_nan(self.rows.width(), row.label);
        }
        // As many as whole vectors have; what is added is never listed.
        let whole = classes.len().next_multiple_of(MAX_LANES);
        classes.resize(whole, 0);
        logits.resize(whole, f32::NEG_INFINITY);
        let candidates = Candidates {
            classes: classes.as_slice(),
            logits: logits.as_slice(),
            log_p: transform.log_probability::<f32>(lse),
            hashes: (listing.hashes.of_row(number), &listing.hashes.of_classes),
            eps: listing.eps,
            unit,
            label: row.label,
        };
        dispatch(self.level, candidates)
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

/// A block whose exponentials are being added up, and where `LISTED` compared with hashes.
struct Pending<'a, V, const LISTED: bool> {
    /// Its block of tokens, as a place in the chunk's results; `None` before the first.
    block: Option<usize>,
    /// How many pairs of classes are through.
    through: usize,
    origin: [V; MAX_PARTS],
    factor: [V; MAX_PARTS],
    mass: [V; MAX_PARTS],
    /// The largest logits.
    most: [V; MAX_PARTS],
    /// What the sums up to now are, from this origin.
    before: [V; MAX_PARTS],
    /// What a hash is multiplied with before a term of the sums is compared with it.
    limit: [V; MAX_PARTS],
    place: Place<'a>,
    /// A bit for each token of a class that may be listed.
    marks: [u32; BLOCK],
}

/// Where a block stands: its first class in the chunk; and the hashes of its classes and its tokens, if there are lists.
#[derive(Clone, Copy)]
struct Place<'a> {
    of_chunk: u16,
    of_classes: &'a [u32; BLOCK],
    tokens: &'a Tokens,
    /// log Σ e^z, or less, when the chunk was begun.
    known: &'a [f32; BLOCK],
    /// eps/2^32
    unit: f32,
}

impl Place<'_> {
    /// Of no lists.
    const NONE: Place<'static> = Place {
        of_chunk: 0,
        of_classes: &[0; BLOCK],
        tokens: &Tokens::NONE,
        known: &[0.0; BLOCK],
        unit: 0.0,
    };
}

/// e^(z − origin), or less where that is beyond all numbers.
#[inline(always)]
fn mass_from<V: Vector<Scalar = f32>>(z: V, origin: V) -> V {
    Exp::in_sum(z.sub(origin).smaller(V::splat(80.0))).value()
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

impl<'a, V: Vector<Scalar = f32> + Memory<f32>, const LISTED: bool> Pending<'a, V, LISTED> {
    /// Vectors over the tokens of a block.
    const PARTS: usize = BLOCK / V::LANES;

    /// Of no classes.
    #[inline(always)]
    fn nothing() -> Self {
        let zeros = [V::splat(0.0); MAX_PARTS];
        Pending {
            block: None,
            through: 0,
            origin: zeros,
            factor: zeros,
            mass: zeros,
            most: [V::splat(f32::NEG_INFINITY); MAX_PARTS],
            before: zeros,
            limit: zeros,
            place: Place::NONE,
            marks: [0; BLOCK],
        }
    }

    /// Takes a block that has just been made. Its sums are measured from the largest logits of the blocks before it, which are
    /// known without another look at it; whether they will do is seen at the end.
    #[inline(always)]
    fn begin(&mut self, block: usize, factors: &[f32; BLOCK], place: Place<'a>, found: &Chunk) {
        self.block = Some(block);
        self.place = place;
        self.through = 0;
        for part in 0..Self::PARTS {
            let at = part * V::LANES;
            let max: V = load(&found.max[block][at..]);
            self.factor[part] = load(&factors[at..]);
            self.most[part] = V::splat(f32::NEG_INFINITY);
            // Nothing but −inf is measured from 0.
            let origin = max.or_zero(max.not_equal(V::splat(f32::NEG_INFINITY)));
            self.measure_from(part, origin, (&found.origin[block], &found.mass[block]));
        }
    }

    /// Sets the origin of a part's sums, and which of its terms may be listed.
    #[inline(always)]
    fn measure_from(
        &mut self,
        part: usize,
        origin: V,
        (old, mass): (&[f32; BLOCK], &[f32; BLOCK]),
    ) {
        let at = part * V::LANES;
        let (old, mass): (V, V) = (load(&old[at..]), load(&mass[at..]));
        let factor = self.factor[part];
        let moved = Exp::in_sum(old.sub(origin).mul(factor)).value();
        self.origin[part] = origin;
        self.before[part] = moved.mul(mass);
        self.mass[part] = V::splat(0.0);
        if LISTED {
            let least: V = load(&self.place.tokens.least[at..]);
            let least = least.larger(load(&self.place.known[at..]));
            // The origin is one of the terms; else all of them are −inf, or they are measured again.
            let own = self.before[part].larger(V::splat(1.0));
            let least = mass_from(least, origin.mul(factor)).larger(own);
            self.limit[part] = least.mul(V::splat(self.place.unit));
        }
    }

    /// Of the logits that one class has for a part of the tokens.
    #[inline(always)]
    fn logits(block: &Block, class: usize, part: usize) -> V {
        let (half, token) = (part * V::LANES / LANES, part * V::LANES % LANES);
        debug_assert!(class < BLOCK && part < Self::PARTS);
        // SAFETY: a block has so many lines in each half, and a line so many tokens.
        unsafe {
            let line = block.0.as_ptr().add(half * BLOCK + class);
            V::load(line.cast::<f32>().add(token))
        }
    }

    /// Adds up to `count` more pairs of classes of `block`, and marks what may be listed.
    #[inline(always)]
    fn add(&mut self, block: &Block, count: usize) {
        let end = PAIRS.min(self.through + count);
        let (mut mass, mut most) = (self.mass, self.most);
        for pair in self.through..end {
            let mut class = 2 * pair;
            while class < 2 * pair + 2 {
                let mut hashes = [0.0; BLOCK];
                if LISTED {
                    hashes = self.place.tokens.hashes(self.place.of_classes[class]);
                }
                let mut marks = 0;
                for part in 0..Self::PARTS {
                    let x = Self::logits(block, class, part);
                    most[part] = x.larger(most[part]);
                    let term = Exp::in_sum(x.sub(self.origin[part]).mul(self.factor[part]));
                    mass[part] = term.add_to(mass[part]);
                    if LISTED {
                        let hash: V = load(&hashes[part * V::LANES..]);
                        let listed = hash.mul(self.limit[part]).less(term.rough());
                        marks |= V::bits(listed) << (part * V::LANES);
                    }
                }
                if LISTED {
                    self.marks[class] = marks;
                }
                class += 1;
            }
        }
        (self.mass, self.most) = (mass, most);
        self.through = end;
    }

    /// Adds the rest, enters what is marked, and keeps the sums.
    #[inline(always)]
    fn finish(&mut self, block: &Block, found: &mut Chunk) {
        let Some(own) = self.block else { return };
        self.add(block, PAIRS);
        if self.rises(&found.max[own]) {
            self.measure_again(own, found);
            self.add(block, PAIRS);
        }
        if LISTED {
            self.enter(block, &mut found.candidates);
            found.ends.push(found.candidates.len());
        }
        for part in 0..Self::PARTS {
            let at = part * V::LANES;
            let max = self.most[part].larger(load(&found.max[own][at..]));
            let total = self.before[part].add(self.mass[part]);
            // SAFETY: a part of the tokens is a vector.
            unsafe {
                Memory::<f32>::store(max, found.max[own][at..].as_mut_ptr());
                Memory::<f32>::store(total, found.mass[own][at..].as_mut_ptr());
                Memory::<f32>::store(self.origin[part], found.origin[own][at..].as_mut_ptr());
            }
        }
    }

    /// Whether some logits are too far above their origin, or the first that there are.
    #[inline(always)]
    fn rises(&self, max: &[f32; BLOCK]) -> bool {
        let mut rises = 0;
        for part in 0..Self::PARTS {
            rises |= self.risen(part, load(&max[part * V::LANES..]));
        }
        rises != 0
    }

    /// A bit for each such token of a part.
    #[inline(always)]
    fn risen(&self, part: usize, max: V) -> u32 {
        let least = V::splat(f32::NEG_INFINITY);
        let rise = self.most[part]
            .sub(self.origin[part])
            .mul(self.factor[part]);
        let far = V::bits(rise.not_less(V::splat(MOST_RISE)));
        let first = !V::bits(max.not_equal(least));
        V::bits(self.most[part].not_equal(least)) & (far | first)
    }

    /// Begins again, from the largest logits where they rise. Where they do not the same numbers come again: what becomes of a
    /// token does not depend on others.
    #[cold]
    fn measure_again(&mut self, block: usize, found: &Chunk) {
        for part in 0..Self::PARTS {
            let risen = self.risen(part, load(&found.max[block][part * V::LANES..]));
            let (mut origin, mut most) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
            self.origin[part].write(&mut origin);
            self.most[part].write(&mut most);
            for lane in (0..V::LANES).filter(|lane| risen >> lane & 1 == 1) {
                origin[lane] = most[lane];
            }
            let sums = (&found.origin[block], &found.mass[block]);
            self.measure_from(part, load(&origin), sums);
        }
        self.through = 0;
    }

    /// Enters what is marked, when the block is through: stores whose places depend on what has been found would hold up the
    /// tiles' loads.
    #[inline(always)]
    fn enter(&mut self, block: &Block, candidates: &mut Vec<Candidate>) {
        candidates.reserve(BLOCK * BLOCK + SPECULATIVE);
        let mut count = candidates.len();
        let logits = block.0.as_flattened();
        // Classes with marks. A plain loop, which the compiler makes vectors of; not of an iterator's.
        let (mut classes, mut class) = (0, 0);
        while class < BLOCK {
            classes |= u32::from(self.marks[class] != 0) << class;
            class += 1;
        }
        while classes != 0 {
            // So many at a time, there or not: a branch for each that nobody foresees costs more.
            for _ in 0..SPECULATIVE {
                let class = classes.trailing_zeros() as usize % BLOCK;
                let marks = self.marks[class];
                let token = marks.trailing_zeros() as usize % BLOCK;
                let candidate = Candidate {
                    logit: logits[(token / LANES * BLOCK + class) * LANES + token % LANES],
                    class: self.place.of_chunk + class as u16,
                    token: token as u16,
                };
                // SAFETY: there is space for all of the block, and for what is not there behind them.
                unsafe { candidates.as_mut_ptr().add(count).write(candidate) };
                count += usize::from(classes != 0);
                let rest = marks & marks.wrapping_sub(1);
                self.marks[class] = rest;
                classes &= if rest == 0 {
                    classes.wrapping_sub(1)
                } else {
                    u32::MAX
                };
            }
        }
        // SAFETY: so many have been written.
        unsafe { candidates.set_len(count) };
    }
}

/// Features that a step takes.
const fn features_of<S: Sums>() -> usize {
    16 * S::TERMS
}

/// A sweep for statistics alone.
struct Plain<'a>(Sweep<'a>);

/// One that enters candidates.
struct Listed<'a>(Sweep<'a>);

impl WithSums for Plain<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa, S: Sums>(self) {
        self.0.through::<I, S, false>();
    }
}

impl WithSums for Listed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa, S: Sums>(self) {
        self.0.through::<I, S, true>();
    }
}

impl Sweep<'_> {
    #[inline(always)]
    fn through<I: Isa, S: Sums, const LISTED: bool>(self) {
        let (call, steps) = (self.call, self.call.packed.steps);
        let listing = call.listing.as_ref();
        let known = listing.map_or_else(Vec::new, |listing| listing.known(&self.tokens));
        let of_classes = listing.map_or(&[][..], |listing| listing.hashes.of_classes.as_chunks().0);
        // SAFETY: `run` has looked.
        let registers = unsafe { S::registers() };
        let mut packed = vec![Line::ZERO; steps * STEP];
        let [mut one, mut other] = [[[0.0; LANES]; 2 * BLOCK]; 2].map(Block);
        let (mut current, mut before) = (&mut one, &mut other);
        let mut pending = Pending::<I::F32, LISTED>::nothing();
        // The block before is through when the last steps begin, so that the tiles have work while it is put away.
        let last = steps.saturating_sub(LAST_STEPS);
        let each = PAIRS.div_ceil(last.div_ceil(S::STEPS).max(1));
        for start in self.classes.clone().step_by(BLOCK) {
            let classes = start..self.classes.end.min(start + BLOCK);
            // SAFETY: passed on to the caller.
            unsafe { call.pack::<S>(&classes, &mut packed) };
            let rows = self.tokens.start * BLOCK..self.tokens.end * BLOCK;
            let mut labels = call.labels_in(start / BLOCK, rows);
            for block in self.tokens.clone() {
                let place = block - self.tokens.start;
                let mut sums = S::new(&registers);
                let left = packed.as_ptr();
                // SAFETY: there are so many lines for each block.
                let right = unsafe { call.packed.lines.as_ptr().add(block * steps * STEP) };
                // No closure: one would be compiled without the vectors' instructions.
                let mut step = 0;
                while step < last {
                    let count = S::STEPS.min(last - step);
                    let done = step * STEP;
                    // SAFETY: both have as many lines for each step.
                    unsafe { sums.add(left.add(done), right.add(done), count) };
                    pending.add(before, each);
                    step += count;
                }
                pending.finish(before, self.found);
                let done = last * STEP;
                // SAFETY: as above.
                unsafe { sums.add(left.add(done), right.add(done), steps - last) };
                call.prefetch(&classes, self.classes.end, (place, self.tokens.len()));
                sums.write(&mut current.0);
                if let Some(bias) = call.product.bias {
                    add_bias::<I::F32>(current, bias, &classes);
                }
                leave_out(current, classes.len());
                while let [(label, row), rest @ ..] = labels
                    && row / BLOCK == block
                {
                    let token = row % BLOCK;
                    let logit = current.0[token / LANES * BLOCK + label - start][token % LANES];
                    self.found.labels.push((place * BLOCK + token, logit));
                    labels = rest;
                }
                let mut at = Place {
                    of_chunk: (start - self.classes.start) as u16,
                    ..Place::NONE
                };
                if LISTED && let Some(listing) = listing {
                    at.of_classes = &of_classes[start / BLOCK];
                    at.tokens = &listing.tokens[block];
                    at.known = &known[place];
                    at.unit = listing.unit;
                }
                pending.begin(place, &call.packed.factors[block], at, self.found);
                std::mem::swap(&mut current, &mut before);
            }
        }
        pending.finish(before, self.found);
        self.found.labels.sort_unstable_by_key(|(token, _)| *token);
    }
}

/// Classes that are not there have no probability.
#[inline(always)]
fn leave_out(block: &mut Block, classes: usize) {
    for class in classes..BLOCK {
        block.0[class] = [f32::NEG_INFINITY; LANES];
        block.0[BLOCK + class] = [f32::NEG_INFINITY; LANES];
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
        for part in 0..BLOCK / V::LANES {
            let line = tokens_of::<V>(block, row, part);
            // SAFETY: a part of the tokens is a vector.
            unsafe { Memory::<f32>::store(load::<V>(line).add(own), line.as_mut_ptr()) };
        }
    }
}
