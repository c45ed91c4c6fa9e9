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
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use half::bf16;

use super::combine::{ChunkResult, Partial, Row};
use super::cpu::Transform;
use super::exp::Exp;
use super::lists::{self, Candidates, Key, List, Lists, PerRow, Sampling};
use super::{LiveRow, Rows, Stat, check_shape};
use crate::array::{ArgumentError, Array, Dtype};
use crate::rows::chunk::forward::Sums as ChunkSums;
use crate::simd::tiles::{self, Line, PlainSums, STEP, Sums, TileSums};
use crate::simd::{Isa, Kernel, Level, MAX_LANES, Memory, Vector, dispatch, prefetch};
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
    unsafe {
        let live = rows.live()?;
        let call = Call::new(rows, product, &live, level, None);
        let done = call.run(threads);
        call.write_all(stats, out, &live, &done);
    }
    Ok(())
}

/// Lists the probabilities of the rows as [`super::lists::lists`] does, to the bit what that makes of the same f32 logits
/// and the same log-sum-exp; the statistics go into `table`.
///
/// A class is a candidate where its probability would be listed if the log-sum-exp were no more than what is known of it
/// when its logit is there: it only grows. Which of them are listed is seen when it is known.
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
        let listing = Listing::new(rows, product, per_row, sampling, &live);
        let call = Call::new(rows, product, &live, level, Some(listing));
        let done = call.run(threads);
        call.clear(table);
        per_row.clear_labels();
        let found: Vec<OnceLock<List>> = live.iter().map(|_| OnceLock::new()).collect();
        for_each_range(threads, live.len(), BLOCK, |range| {
            let mut scratch = (Vec::new(), Vec::new());
            for place in range {
                let chunks = call.chunks_of(place, &done);
                let of_row = call.row((&live[place], place), chunks);
                call.write(stats, table, &live[place], of_row);
                let at = (&live[place], place);
                found[place].get_or_init(|| {
                    call.list((per_row, sampling), at, of_row, chunks, &mut scratch)
                });
            }
        });
        let lists = found
            .into_iter()
            .map(|list| list.into_inner().unwrap_or_default());
        Ok(Lists::new(rows.count(), &live, lists.collect()))
    }
}

impl Product<'_> {
    /// A logit, or a little less: sums in another order are not the same.
    ///
    /// # Safety
    /// The promise of [`forward`]; there are such a row and such a class.
    unsafe fn least(&self, row: usize, class: usize) -> f32 {
        let (x, w) = (row_of(self.hidden, row), row_of(self.weight, class));
        let features = self.hidden.shape[1];
        // As the tiles read them: without subnormal numbers.
        let read = |source: *const bf16, feature| {
            // SAFETY: passed on to the caller.
            let value = unsafe { source.add(feature).read_unaligned() }.to_f32();
            if value.is_subnormal() { 0.0 } else { value }
        };
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for feature in 0..features {
            let product = read(x, feature) * read(w, feature);
            sum += product;
            magnitude += product.abs();
        }
        if let Some(bias) = self.bias {
            // SAFETY: one per class.
            sum += unsafe { bias.pointer::<f32>(class as isize).read_unaligned() };
        }
        sum - magnitude * (features + 8) as f32 * 2.0 * f32::EPSILON
    }

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
    /// What may be listed; by token and then by class when the chunk is through.
    candidates: Entries,
    /// Where the candidates of each token begin.
    starts: Vec<u32>,
}

/// Candidates: their logits, and their names: class of the chunk and token of the group, 16 bits each.
#[derive(Default)]
struct Entries {
    logits: Vec<f32>,
    names: Vec<u32>,
}

impl Entries {
    fn of(count: usize) -> Entries {
        Entries {
            logits: vec![0.0; count],
            names: vec![0; count],
        }
    }

    /// Makes space for so many more.
    #[inline(always)]
    fn reserve(&mut self, count: usize) {
        let capacity = self.logits.capacity().min(self.names.capacity());
        if capacity - self.logits.len() < count {
            self.logits.reserve(CHUNK + count);
            self.names.reserve(CHUNK + count);
        }
    }

    fn clear(&mut self) {
        self.logits.clear();
        self.names.clear();
    }
}

/// What tells which classes may be listed, for every token of the blocks of live rows.
struct Listing {
    /// eps/2^32
    unit: f32,
    /// Of the hashes.
    first: Vec<[u32; BLOCK]>,
    second: Vec<[u32; BLOCK]>,
    /// z of the labels, or less.
    labels: Vec<[f32; BLOCK]>,
    /// log Σ e^z over the chunks that are through, or less.
    known: Vec<AtomicU32>,
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

/// Candidates of two classes and a block's tokens that are entered at a time.
const SPECULATIVE: usize = 3;

/// What a candidate's probability may be off by, relative.
const MARGIN: f32 = 1e-3;

impl Listing {
    /// # Safety
    /// The promise of [`lists`].
    unsafe fn new(
        rows: &Rows,
        product: &Product<'_>,
        per_row: &PerRow<'_>,
        sampling: Sampling,
        live: &[LiveRow],
    ) -> Listing {
        let blocks = live.len().div_ceil(BLOCK);
        let mut listing = Listing {
            unit: (sampling.eps / (1u64 << 32) as f64) as f32 * (1.0 - MARGIN),
            first: vec![[0; BLOCK]; blocks],
            second: vec![[0; BLOCK]; blocks],
            // Where there is no token everything is below what is known.
            labels: vec![[f32::INFINITY; BLOCK]; blocks],
            known: Vec::new(),
        };
        listing.known.resize_with(blocks * BLOCK, || {
            AtomicU32::new(f32::NEG_INFINITY.to_bits())
        });
        for (place, row) in live.iter().enumerate() {
            let (block, token) = (place / BLOCK, place % BLOCK);
            // SAFETY: passed on to the caller; `numbers` has one per row, and the label is a class.
            let (number, label) = unsafe {
                (
                    per_row.numbers.read_i64(row.index),
                    row.label.map(|label| product.least(row.index, label)),
                )
            };
            let key = Key::new(sampling, number);
            listing.first[block][token] = key.first;
            listing.second[block][token] = key.second;
            let factor = (rows.scale / row.temperature) as f32;
            listing.labels[block][token] = below(label.map_or(f32::NEG_INFINITY, |x| x * factor));
        }
        listing
    }
}

/// A little less than a z.
fn below(z: f32) -> f32 {
    z - (MARGIN + z.abs() * 1e-6)
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
    listing: Option<Listing>,
    /// Memory for candidates that no thread uses now.
    spare: Mutex<Vec<Entries>>,
}

/// Pointer to a row of bf16 pairs' halves.
fn row_of(view: &Array, row: usize) -> *const bf16 {
    view.pointer::<bf16>(row as isize * view.strides[0])
        .cast_const()
}

impl<'a> Call<'a> {
    fn new(
        rows: &'a Rows,
        product: &'a Product<'a>,
        live: &[LiveRow],
        level: Level,
        listing: Option<Listing>,
    ) -> Call<'a> {
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
            listing,
            spare: Mutex::default(),
        }
    }

    /// All groups of tokens times all chunks of classes: the chunks of a group one behind the other.
    ///
    /// # Safety
    /// The promise of [`forward`].
    unsafe fn run(&self, threads: usize) -> Vec<OnceLock<Chunk>> {
        let tasks = self.groups * self.chunks;
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

    /// Those of the group that a live row is in.
    fn chunks_of<'c>(&self, place: usize, done: &'c [OnceLock<Chunk>]) -> &'c [OnceLock<Chunk>] {
        let group = place / (self.group * BLOCK);
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
                let of_row = self.row((row, place), self.chunks_of(place, done));
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
        let blocks = self.factors.len();
        let tokens = group * self.group..blocks.min((group + 1) * self.group);
        let classes = chunk * CHUNK..self.rows.width().min((chunk + 1) * CHUNK);
        let mut found = Chunk {
            max: vec![[f32::NEG_INFINITY; BLOCK]; tokens.len()],
            mass: vec![[0.0; BLOCK]; tokens.len()],
            labels: Vec::new(),
            candidates: self.lock_spare().pop().unwrap_or_default(),
            starts: Vec::new(),
        };
        let sweep = Sweep {
            call: self,
            tokens: tokens.clone(),
            classes,
            found: &mut found,
        };
        match &self.listing {
            None => dispatch(self.level, Plain(sweep)),
            Some(listing) => {
                dispatch(self.level, Listed(sweep));
                self.learn(listing, &tokens, &found);
                let mut unsorted = found.sort();
                unsorted.clear();
                self.lock_spare().push(unsorted);
            }
        }
        found
    }

    fn lock_spare(&self) -> MutexGuard<'_, Vec<Entries>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a chunk to what is known of the tokens' log-sum-exps.
    fn learn(&self, listing: &Listing, tokens: &Range<usize>, found: &Chunk) {
        let values = found
            .max
            .as_flattened()
            .iter()
            .zip(found.mass.as_flattened());
        let known = &listing.known[tokens.start * BLOCK..tokens.end * BLOCK];
        let factors = self.factors[tokens.clone()].as_flattened();
        for (((max, mass), known), factor) in values.zip(known).zip(factors) {
            let own = below(max * factor + mass.ln());
            let add = |old: u32| {
                let old = f32::from_bits(old);
                let (low, high) = (own.min(old), own.max(old));
                let sum = below(high + (low - high).exp().ln_1p());
                sum.is_finite().then(|| sum.max(high).to_bits())
            };
            let _ = known.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
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

    /// A row as its chunks leave it, and z of its label.
    fn row(&self, (row, place): (&LiveRow, usize), chunks: &[OnceLock<Chunk>]) -> (Row, f64) {
        let transform = Transform::of(self.rows, row);
        let token = place % (self.group * BLOCK);
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
        (state, z)
    }

    /// Writes the statistics of a row.
    ///
    /// # Safety
    /// The promise of [`forward`].
    unsafe fn write(&self, stats: &[Stat], out: &Array, row: &LiveRow, (state, z): (Row, f64)) {
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

impl Call<'_> {
    /// Lists a live row from its candidates, and writes what belongs to its label.
    ///
    /// # Safety
    /// The promise of [`lists`].
    unsafe fn list(
        &self,
        (per_row, sampling): (&PerRow<'_>, Sampling),
        (row, place): (&LiveRow, usize),
        (state, z): (Row, f64),
        chunks: &[OnceLock<Chunk>],
        (classes, logits): &mut (Vec<u32>, Vec<f32>),
    ) -> List {
        let lse = state.lse();
        if lse == f64::NEG_INFINITY {
            return List::default(); // nothing but -inf: the gradient is 0
        }
        let transform = Transform::of(self.rows, row);
        let unit = self.rows.scale / row.temperature;
        // SAFETY: passed on to the caller.
        let number = unsafe {
            if row.label.is_some() {
                per_row.write_label::<f32>(row.index, unit, state.log_p(z));
            }
            per_row.numbers.read_i64(row.index)
        };
        if lse.is_nan() {
            return List::of_nan(self.rows.width(), row.label);
        }
        classes.clear();
        logits.clear();
        let token = place % (self.group * BLOCK);
        for (chunk, found) in chunks.iter().filter_map(OnceLock::get).enumerate() {
            let own = found.starts[token] as usize..found.starts[token + 1] as usize;
            let class_of = |name: &u32| (chunk * CHUNK) as u32 + (name >> 16);
            classes.extend(found.candidates.names[own.clone()].iter().map(class_of));
            logits.extend_from_slice(&found.candidates.logits[own]);
        }
        // As many as whole vectors have; what is added is never listed.
        let whole = classes.len().next_multiple_of(MAX_LANES);
        classes.resize(whole, 0);
        logits.resize(whole, f32::NEG_INFINITY);
        let candidates = Candidates {
            classes: classes.as_slice(),
            logits: logits.as_slice(),
            log_p: transform.log_probability::<f32>(lse),
            key: Key::new(sampling, number),
            eps: sampling.eps,
            unit,
            label: row.label,
        };
        dispatch(self.level, candidates)
    }
}

impl Chunk {
    /// Sorts the candidates by token; those of a token stay in the order of classes. Returns them unsorted.
    fn sort(&mut self) -> Entries {
        let tokens = self.max.len() * BLOCK;
        let token_of = |name: u32| usize::from(name as u16);
        self.starts = vec![0; tokens + 1];
        for name in &self.candidates.names {
            self.starts[token_of(*name) + 1] += 1;
        }
        for token in 0..tokens {
            self.starts[token + 1] += self.starts[token];
        }
        let mut next = self.starts.clone();
        let mut sorted = Entries::of(self.candidates.names.len());
        for (name, logit) in self.candidates.names.iter().zip(&self.candidates.logits) {
            let place = &mut next[token_of(*name)];
            sorted.names[*place as usize] = *name;
            sorted.logits[*place as usize] = *logit;
            *place += 1;
        }
        std::mem::replace(&mut self.candidates, sorted)
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
    /// What a hash is multiplied with before a term of the sums is compared with it.
    limit: [V; MAX_PARTS],
    place: Place,
    /// A bit for each token of a class that may be listed.
    marks: [u32; BLOCK],
}

/// Where a block stands: its block of tokens among all, its first class, and its first candidate's name.
#[derive(Clone, Copy, Default)]
struct Place {
    tokens: usize,
    class: u32,
    name: u32,
}

impl Listing {
    /// Hashes of a class for a block's tokens.
    #[inline(always)]
    fn hashes(&self, tokens: usize, class: u32) -> [f32; BLOCK] {
        let mut hashes = [0.0; BLOCK];
        let (first, second) = (&self.first[tokens], &self.second[tokens]);
        // A plain loop, which the compiler makes vectors of; not of an iterator's.
        let mut token = 0;
        while token < BLOCK {
            let key = Key {
                first: first[token],
                second: second[token],
            };
            hashes[token] = key.finish(key.begin(class)) as f32;
            token += 1;
        }
        hashes
    }
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
            limit: zeros,
            place: Place::default(),
            marks: [0; BLOCK],
        }
    }

    /// As `add`, and marks what may be listed.
    #[inline(always)]
    fn add_listed(&mut self, block: &Block, count: usize, listing: &Listing) {
        let end = self.classes.min(self.through + count);
        let mut mass = self.mass;
        for class in self.through..end {
            let hashes = listing.hashes(self.place.tokens, self.place.class + class as u32);
            let mut marks = 0;
            for (part, sum) in mass[..Self::PARTS].iter_mut().enumerate() {
                let term = Exp::in_sum(self.exponent(block, class, part));
                *sum = term.add_to(*sum);
                let hash: V = load(&hashes[part * V::LANES..]);
                let listed = hash.mul(self.limit[part]).less(term.rough());
                marks |= V::bits(listed) << (part * V::LANES);
            }
            self.marks[class] = marks;
        }
        self.mass = mass;
        self.through = end;
    }

    /// Enters what is marked, when the block is through: stores whose places depend on what has been found would hold up the
    /// tiles' loads.
    #[inline(always)]
    fn enter(&self, block: &Block, candidates: &mut Entries) {
        candidates.reserve(BLOCK * BLOCK + SPECULATIVE);
        let mut count = candidates.logits.len();
        let logits = block.0.as_flattened();
        for (pair, marks) in self.marks.as_chunks::<2>().0.iter().enumerate() {
            if 2 * pair >= self.classes {
                break;
            }
            let mut marks = u64::from(marks[0]) | u64::from(marks[1]) << BLOCK;
            let end = count + marks.count_ones() as usize;
            loop {
                // So many at a time, there or not: seldom are there more, and a branch that nobody foresees costs more.
                for _ in 0..SPECULATIVE {
                    let bit = marks.trailing_zeros() as usize % (2 * BLOCK);
                    let (class, token) = (2 * pair + bit / BLOCK, bit % BLOCK);
                    let place = (token / LANES * BLOCK + class) * LANES + token % LANES;
                    let name = self.place.name + ((class as u32) << 16) + token as u32;
                    // SAFETY: there is space for all of the block, and for what is not there behind them.
                    unsafe {
                        candidates
                            .logits
                            .as_mut_ptr()
                            .add(count)
                            .write(logits[place]);
                        candidates.names.as_mut_ptr().add(count).write(name);
                    }
                    count += 1;
                    marks &= marks.wrapping_sub(1);
                }
                if marks == 0 {
                    break;
                }
            }
            count = end;
        }
        // SAFETY: so many have been written.
        unsafe {
            candidates.logits.set_len(count);
            candidates.names.set_len(count);
        }
    }

    /// Sets which terms of the block may be listed, by what is known of the tokens' sums.
    #[inline(always)]
    fn expect(&mut self, listing: &Listing, known: &[f32; BLOCK], place: Place) {
        self.place = place;
        for part in 0..Self::PARTS {
            let at = part * V::LANES;
            let (origin, one) = (self.origin[part].mul(self.factor[part]), V::splat(1.0));
            let others = mass_from(load(&known[at..]), origin);
            let own = self.before[part].larger(one);
            let label = mass_from(load(&listing.labels[place.tokens][at..]), origin);
            self.limit[part] = others.add(own).larger(label).mul(V::splat(listing.unit));
        }
    }

    /// Of the logits that one class has for a part of the tokens, less the origin of their sums.
    #[inline(always)]
    fn exponent(&self, block: &Block, class: usize, part: usize) -> V {
        let (half, token) = (part * V::LANES / LANES, part * V::LANES % LANES);
        debug_assert!(class < BLOCK && part < Self::PARTS);
        // SAFETY: a block has so many lines in each half, and a line so many tokens.
        let x = unsafe {
            let line = block.0.as_ptr().add(half * BLOCK + class);
            V::load(line.cast::<f32>().add(token))
        };
        x.sub(self.origin[part]).mul(self.factor[part])
    }

    /// Adds up to `count` more classes of `block`, which are at least `self.classes`.
    #[inline(always)]
    fn add(&mut self, block: &Block, count: usize) {
        let end = self.classes.min(self.through + count);
        let mut mass = self.mass;
        for class in self.through..end {
            for (part, sum) in mass[..Self::PARTS].iter_mut().enumerate() {
                *sum = Exp::in_sum(self.exponent(block, class, part)).add_to(*sum);
            }
        }
        self.mass = mass;
        self.through = end;
    }

    #[inline(always)]
    fn add_some(&mut self, block: &Block, count: usize, listing: Option<&Listing>) {
        match listing {
            Some(listing) => self.add_listed(block, count, listing),
            None => self.add(block, count),
        }
    }

    /// Adds the rest, and keeps the sums.
    #[inline(always)]
    fn finish(&mut self, block: &Block, found: &mut Chunk, listing: Option<&Listing>) {
        self.add_some(block, BLOCK, listing);
        if listing.is_some() {
            self.enter(block, &mut found.candidates);
        }
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

/// A sweep for statistics alone.
struct Plain<'a>(Sweep<'a>);

/// One that enters candidates.
struct Listed<'a>(Sweep<'a>);

impl Kernel for Plain<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        self.0.run::<I, false>();
    }
}

impl Kernel for Listed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        self.0.run::<I, true>();
    }
}

impl Sweep<'_> {
    #[inline(always)]
    fn run<I: Isa, const LISTED: bool>(self) {
        if available() {
            self.through::<I, TileSums, LISTED>();
        } else {
            self.through::<I, PlainSums, LISTED>();
        }
    }

    #[inline(always)]
    fn through<I: Isa, S: Sums, const LISTED: bool>(self) {
        let (call, steps) = (self.call, self.call.steps);
        // Known to be there or not when it is compiled.
        let listing = call.listing.as_ref().filter(|_| LISTED);
        let known = listing.map_or_else(Vec::new, |listing| listing.known(&self.tokens));
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
                    pending.add_some(before, each, listing);
                }
                call.prefetch(&classes, self.classes.end, (place, self.tokens.len()));
                sums.write(&mut current.0);
                pending.finish(before, self.found, listing);
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
                if let Some(listing) = listing {
                    let name = (start - self.classes.start) << 16 | (place * BLOCK);
                    let at = Place {
                        tokens: block,
                        class: start as u32,
                        name: name as u32,
                    };
                    pending.expect(listing, &known[place], at);
                }
                std::mem::swap(&mut current, &mut before);
            }
        }
        pending.finish(before, self.found, listing);
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
