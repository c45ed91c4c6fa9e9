//! What it takes to run a generated kernel on given arrays: the workspace, the argument's bytes, the launches.

use super::schedule::{SlotSize, Walk};
use super::{Generated, Signature};
use crate::array::{Array, Dtype};
use crate::cuda::{Launch, THREADS};
use crate::objective::GraphError;
use crate::objective::instruction::{Extent, Task};
use crate::objective::program::Program;
use crate::objective::space::{BATCH, SpaceId};

const WARPS: usize = THREADS as usize / 32;
/// Elements of a chunk; `CHUNK` in the source.
const CHUNK: usize = 2048;
/// Elements of the largest space up to which one block does everything.
const ONE_BLOCK: usize = 4096;
/// Comparisons of a sort up to which one block does everything.
const ONE_BLOCK_COMPARISONS: usize = 1 << 20;
/// Elements up to which the whole batch can be sorted: every pair of elements is compared.
const SORTED_BATCH: usize = 1 << 17;
/// Blocks beyond which each does more instead.
const GRID: usize = 1 << 15;
/// Bytes of a kernel's argument that every driver takes.
const ARGUMENT: usize = 4096;

/// A column or an output in device memory, one-dimensional.
pub struct Column {
    pub view: Array,
    /// If there are indices (i64), element `i` of the space is element `take[i]` of the view.
    pub take: Option<Array>,
}

/// How the elements of a space are cut by its parent.
pub enum DeviceCut {
    /// So many elements, equally many for each element of the parent.
    Count(usize),
    /// i64 offsets in device memory, and the number of elements that there are at most.
    Offsets(Array, usize),
}

/// The arrays and numbers of one run, in the order that the program names them.
pub struct Call<'a> {
    pub columns: &'a [Column],
    pub parameters: &'a [f64],
    pub cuts: &'a [DeviceCut],
    /// For each pair space in use, in order of their numbers: how many pairs there are at most; `None`: from the cut.
    pub pairs: &'a [Option<usize>],
    pub outputs: &'a [Column],
    /// Address of the workspace.
    pub workspace: usize,
    /// Whether to use one block (`None`: where that is best).
    pub one_block: Option<bool>,
}

/// Number of elements (at most) and fan-out of every space in use.
struct Sizes {
    counts: Vec<usize>,
    fans: Vec<usize>,
}

impl Generated {
    /// Bytes of workspace that a run needs: a function of the sizes alone.
    pub fn workspace(
        &self,
        program: &Program,
        cuts: &[DeviceCut],
        pairs: &[Option<usize>],
    ) -> Result<usize, GraphError> {
        let sizes = measure(program, cuts, pairs)?;
        let slots = self.schedule.slots.iter();
        Ok(8 * slots
            .map(|&slot| slot_length(program, &sizes, slot))
            .sum::<usize>())
    }

    /// The launches of a run.
    pub fn launches(&self, program: &Program, call: &Call) -> Result<Vec<Launch>, GraphError> {
        check_counts(program, call)?;
        let sizes = measure(program, call.cuts, call.pairs)?;
        for (column, (name, space)) in call.columns.iter().zip(&program.columns) {
            check_column(&format!("column '{name}'"), column, sizes.counts[*space])?;
        }
        for (index, (column, &(_, space))) in call.outputs.iter().zip(&program.outputs).enumerate()
        {
            let what = format!("output {index}");
            if !matches!(column.view.dtype, Dtype::F32 | Dtype::F64) {
                let dtype = column.view.dtype.name();
                return Err(GraphError(format!(
                    "{what}: expected dtype f32 or f64, got {dtype}"
                )));
            }
            check_column(&what, column, sizes.counts[space])?;
        }
        self.check_sorts(program, &sizes)?;
        let one_block = call
            .one_block
            .unwrap_or_else(|| self.suits_one_block(program, &sizes));
        let argument = self.argument(program, call, &sizes)?;
        let programs = self.programs(
            &signature(call.columns),
            &signature(call.outputs),
            one_block,
        );
        let grids = self.grids(&sizes, one_block);
        let launches = programs.into_iter().zip(grids);
        Ok(launches
            .map(|(program, grid)| Launch {
                program,
                grid,
                block: THREADS,
                cluster: 1,
                shared: 0,
                argument: argument.clone(),
            })
            .collect())
    }

    /// The number of blocks of each launch.
    fn grids(&self, sizes: &Sizes, one_block: bool) -> Vec<u32> {
        if one_block {
            return vec![1];
        }
        let parts = self.parts.iter();
        parts
            .map(|stages| {
                let traversals = self.schedule.stages[stages.clone()].iter().flatten();
                let blocks = traversals
                    .map(|traversal| blocks(traversal.walk, sizes))
                    .max();
                blocks.unwrap_or(1).clamp(1, GRID) as u32
            })
            .collect()
    }

    fn suits_one_block(&self, program: &Program, sizes: &Sizes) -> bool {
        let largest = sizes.counts.iter().max().copied().unwrap_or(0);
        let comparisons = self.sorts(program).map(|(upper, lower)| {
            let segments = sizes.counts[upper].max(1);
            sizes.counts[lower].saturating_mul(sizes.counts[lower].div_ceil(segments))
        });
        largest <= ONE_BLOCK && comparisons.max().unwrap_or(0) <= ONE_BLOCK_COMPARISONS
    }

    /// The segmentations inside which something is sorted.
    fn sorts(&self, program: &Program) -> impl Iterator<Item = (SpaceId, SpaceId)> {
        self.values.all.iter().filter_map(|value| match value.task {
            Task::Rank { segments, .. } | Task::Order { segments, .. } => {
                Some(program.segmentations[segments])
            }
            _ => None,
        })
    }

    fn check_sorts(&self, program: &Program, sizes: &Sizes) -> Result<(), GraphError> {
        for (upper, lower) in self.sorts(program) {
            let count = sizes.counts[lower];
            if upper == BATCH && count > SORTED_BATCH {
                return Err(GraphError(format!(
                    "'{}' is sorted or ranked over the whole batch, which takes at most {SORTED_BATCH} elements on \
                     CUDA, got {count}; score smaller batches, or on the CPU",
                    program.space_name(lower)
                )));
            }
        }
        Ok(())
    }

    /// The bytes of `Args`.
    fn argument(
        &self,
        program: &Program,
        call: &Call,
        sizes: &Sizes,
    ) -> Result<Vec<u8>, GraphError> {
        let mut words: Vec<u64> = Vec::new();
        push_columns(&mut words, call.columns);
        push_columns(&mut words, call.outputs);
        let mut slots: Vec<usize> = Vec::new();
        let mut address = call.workspace;
        for &slot in &self.schedule.slots {
            slots.push(address);
            address += 8 * slot_length(program, sizes, slot);
        }
        let spaces = words.len();
        for (space, extent) in program.extents.iter().enumerate() {
            let (offsets, step) = match extent {
                Extent::Given(index) => match &call.cuts[*index] {
                    DeviceCut::Count(_) => (0, 0),
                    DeviceCut::Offsets(view, _) => (view.address, stride(view)),
                },
                Extent::Pairs(_) => (
                    self.schedule.offsets[space].map_or(0, |slot| slots[slot]),
                    1,
                ),
                Extent::Unused | Extent::Batch => continue,
            };
            words.extend([
                offsets as u64,
                step as u64,
                sizes.counts[space] as u64,
                sizes.fans[space] as u64,
            ]);
        }
        pad(&mut words, spaces, 4);
        let parameters = words.len();
        words.extend(call.parameters.iter().map(|number| number.to_bits()));
        pad(&mut words, parameters, 1);
        let first_slot = words.len();
        words.extend(slots.iter().map(|&slot| slot as u64));
        pad(&mut words, first_slot, 1);
        if words.len() * 8 > ARGUMENT {
            return Err(GraphError(format!(
                "the objective has {} columns, {} outputs and {} intermediate arrays, too many for one CUDA kernel \
                 ({} bytes of arguments, {ARGUMENT} at most); score it on the CPU",
                program.columns.len(),
                program.outputs.len(),
                slots.len(),
                words.len() * 8
            )));
        }
        Ok(words.iter().flat_map(|word| word.to_le_bytes()).collect())
    }
}

/// The number of blocks that have something to do in a walk.
fn blocks(walk: Walk, sizes: &Sizes) -> usize {
    match walk {
        Walk::Pairs(_) | Walk::Once | Walk::Finish => 1,
        Walk::Elements(space) => sizes.counts[space].div_ceil(THREADS as usize),
        Walk::Chunks(space) => sizes.counts[space].div_ceil(CHUNK),
        // A block each, as they may be long; many are dealt out warp by warp.
        Walk::Segments(upper, _) => {
            sizes.counts[upper].min(sizes.counts[upper].div_ceil(WARPS).max(1024))
        }
        Walk::Squares(_, space) | Walk::Scan(_, space) => sizes.counts[space].div_ceil(WARPS),
    }
}

/// An array of `Args` has at least one element, of so many words.
fn pad(words: &mut Vec<u64>, start: usize, element: usize) {
    if words.len() == start {
        words.resize(start + element, 0);
    }
}

fn push_columns(words: &mut Vec<u64>, columns: &[Column]) {
    let start = words.len();
    for Column { view, take } in columns {
        let indices = take.as_ref().map_or(0, |take| take.address);
        words.extend([view.address as u64, stride(view) as u64, indices as u64]);
    }
    pad(words, start, 3);
}

fn stride(view: &Array) -> isize {
    view.strides.first().copied().unwrap_or(0)
}

fn signature(columns: &[Column]) -> Signature {
    // The names of dtypes are types in kernels/units.cuh, but for `bool`, which is C++'s own.
    columns
        .iter()
        .map(|column| (column.view.dtype.name(), column.take.is_some()))
        .collect()
}

fn slot_length(program: &Program, sizes: &Sizes, slot: SlotSize) -> usize {
    match slot {
        SlotSize::Elements(space) => sizes.counts[space],
        SlotSize::Chunks(space) => sizes.counts[space].div_ceil(CHUNK),
        SlotSize::Offsets(space) => sizes.counts[program.parents[space]] + 1,
    }
}

fn check_counts(program: &Program, call: &Call) -> Result<(), GraphError> {
    let counts = [
        ("columns", call.columns.len(), program.columns.len()),
        (
            "parameters",
            call.parameters.len(),
            program.parameters.len(),
        ),
        ("outputs", call.outputs.len(), program.outputs.len()),
    ];
    for (what, got, expected) in counts {
        if got != expected {
            return Err(GraphError(format!(
                "{what}: expected {expected}, got {got}"
            )));
        }
    }
    Ok(())
}

fn check_column(what: &str, column: &Column, expected: usize) -> Result<(), GraphError> {
    if let Some(take) = &column.take
        && (take.dtype != Dtype::I64 || take.shape.len() != 1 || !take.is_contiguous())
    {
        return Err(GraphError(format!(
            "{what}: expected indices as a contiguous vector of i64, got {} of shape {:?} with strides {:?}",
            take.dtype.name(),
            take.shape,
            take.strides
        )));
    }
    let got = column.take.as_ref().map_or(column.view.len(), Array::len);
    if column.view.shape.len() > 1 || got != expected {
        return Err(GraphError(format!(
            "{what}: expected {expected} values in one dimension, got shape {:?} ({got} values)",
            column.view.shape
        )));
    }
    Ok(())
}

fn measure(
    program: &Program,
    cuts: &[DeviceCut],
    pairs: &[Option<usize>],
) -> Result<Sizes, GraphError> {
    if cuts.len() != program.spaces.len() {
        return Err(GraphError(format!(
            "offsets: expected {}, got {}",
            program.spaces.len(),
            cuts.len()
        )));
    }
    let mut sizes = Sizes {
        counts: Vec::new(),
        fans: Vec::new(),
    };
    let mut pairs = pairs.iter();
    for (space, extent) in program.extents.iter().enumerate() {
        let above = sizes
            .counts
            .get(program.parents[space])
            .copied()
            .unwrap_or(1);
        let (count, fan) = match extent {
            Extent::Unused => (0, 0),
            Extent::Batch => (1, 1),
            Extent::Given(index) => given(program, space, &cuts[*index], above)?,
            Extent::Pairs(elements) => {
                let given = pairs.next().copied().flatten();
                let elements_below = sizes.counts[*elements];
                let counted = match program.extents[*elements] {
                    Extent::Given(index) if matches!(cuts[index], DeviceCut::Count(_)) => {
                        elements_below.checked_mul(sizes.fans[*elements])
                    }
                    _ => None,
                };
                let count = given.or(counted).ok_or_else(|| {
                    GraphError(format!(
                        "counts: expected the number of pairs of '{}', which offsets on the device do not tell",
                        program.space_name(*elements)
                    ))
                })?;
                (count, 0)
            }
        };
        sizes.counts.push(count);
        sizes.fans.push(fan);
    }
    Ok(sizes)
}

fn given(
    program: &Program,
    space: SpaceId,
    cut: &DeviceCut,
    above: usize,
) -> Result<(usize, usize), GraphError> {
    let name = program.space_name(space);
    let parent = program.space_name(program.parents[space]);
    match cut {
        DeviceCut::Count(count) if above == 0 && *count == 0 => Ok((0, 1)),
        DeviceCut::Count(count) if above != 0 && count % above == 0 => Ok((*count, count / above)),
        DeviceCut::Count(count) => Err(GraphError(format!(
            "offsets of '{name}': {count} elements cannot be equally many for each of {above} elements of '{parent}'"
        ))),
        DeviceCut::Offsets(view, _)
            if view.dtype != Dtype::I64 || view.shape.len() != 1 || view.len() != above + 1 =>
        {
            Err(GraphError(format!(
                "offsets of '{name}': expected {} values of i64 (one more than '{parent}' has elements), got {} of shape {:?}",
                above + 1,
                view.dtype.name(),
                view.shape
            )))
        }
        DeviceCut::Offsets(_, count) => Ok((*count, 0)),
    }
}

impl Program {
    /// The pair spaces in use, in order of their numbers.
    pub fn pair_spaces(&self) -> impl Iterator<Item = SpaceId> {
        let extents = self.extents.iter().enumerate();
        extents.filter_map(|(space, extent)| matches!(extent, Extent::Pairs(_)).then_some(space))
    }
}
