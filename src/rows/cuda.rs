//! Rows on CUDA: which kernels run for a call, with which constants, grid and argument. The arithmetic is in `kernels/rows_*`.

use super::{MAX_K, Rows, Stat, Temperature};
use crate::array::{ArgumentError, Array, Dtype};
use crate::cuda::{Argument, Device, Launch, Program, THREADS, source};

/// Leading dimensions that a kernel can step through, after those that lie evenly have been joined.
const MAX_RANK: usize = 6;
const STATS: usize = Stat::ALL.len();

/// Every kernel of rows: entry point, its file, the constants it is compiled with.
pub const PROGRAMS: &[crate::cuda::source::Entry] = &[
    ("rows_forward", &source::ROWS_FORWARD, DEFINES),
    ("rows_combine", &source::ROWS_COMBINE, DEFINES),
    ("rows_backward", &source::ROWS_BACKWARD, DEFINES),
    ("rows_both", &source::ROWS_BOTH, DEFINES),
];
const DEFINES: &[&str] = &[
    "LOGIT",
    "REFERENCE",
    "STATS",
    "ROW_THREADS",
    "UNIT",
    "CHUNK",
    "SOFTCAP",
    "CLUSTER",
    "PARTS",
];

/// The first compute capability that has clusters.
const FIRST_WITH_CLUSTERS: i32 = 90;

/// What a plan depends on of the device.
#[derive(Clone, Copy)]
pub struct Target {
    pub multiprocessors: usize,
    /// 90 for compute capability 9.0.
    pub capability: i32,
    /// Bytes of shared memory that a block may have.
    pub shared: usize,
}

impl Target {
    /// The same device, had it no clusters.
    pub fn without_clusters(self) -> Target {
        Target {
            capability: self.capability.min(FIRST_WITH_CLUSTERS - 1),
            ..self
        }
    }
}

impl From<&Device> for Target {
    fn from(device: &Device) -> Target {
        Target {
            multiprocessors: device.multiprocessors,
            capability: device.capability,
            shared: device.shared,
        }
    }
}

/// `RowsArgs` of `kernels/rows.cuh`.
#[repr(C)]
#[derive(Default)]
struct RowsArgs {
    logits: usize,
    reference: usize,
    gradient: usize,
    labels: usize,
    mask: usize,
    temperatures: usize,
    values: usize,
    grads: usize,
    saved: usize,
    partials: usize,
    rows: i64,
    width: i64,
    parts: i64,
    k: i64,
    ignore_index: i64,
    first_class: i64,
    classes: i64,
    temperature_type: i64,
    rank: i64,
    shape: [i64; MAX_RANK],
    logits_stride: [i64; MAX_RANK],
    reference_stride: [i64; MAX_RANK],
    gradient_stride: [i64; MAX_RANK],
    labels_stride: [i64; MAX_RANK],
    mask_stride: [i64; MAX_RANK],
    temperature_stride: [i64; MAX_RANK],
    slot: [i64; STATS],
    temperature: f64,
    scale: f64,
    softcap: f64,
}

// SAFETY: `repr(C)`, 8-byte fields only, in the order of the source.
unsafe impl Argument for RowsArgs {}

/// How a row is shared out: decided by dtypes and width alone, so that a row's bits do not depend on its company.
struct Geometry {
    /// Threads of a row.
    threads: usize,
    /// Elements that a thread takes at once.
    unit: usize,
    /// Elements that are summed before they meet the rest of the row.
    chunk: usize,
}

impl Geometry {
    /// For rows of `width` logits, read together with a reference's or alone.
    fn new(width: usize, logits: Dtype, reference: Option<Dtype>) -> Geometry {
        let unit = 16
            / reference.map_or(logits.size(), |reference| {
                reference.size().min(logits.size())
            });
        let chunk = |threads: usize| 16 * unit * threads;
        // A row that is one chunk to a warp is a warp's; eight of them share a block.
        let threads = if width <= chunk(32) {
            32
        } else {
            THREADS as usize
        };
        Geometry {
            threads,
            unit,
            chunk: chunk(threads),
        }
    }

    fn rows_per_block(&self) -> usize {
        THREADS as usize / self.threads
    }
}

/// Parts into which each row is split over blocks: 1, or its number of chunks when rows are too few to fill the device.
fn parts(
    rows: usize,
    width: usize,
    geometry: &Geometry,
    stats: &[Stat],
    multiprocessors: usize,
) -> usize {
    let needs_whole_row = stats
        .iter()
        .any(|stat| matches!(stat, Stat::TopkMass | Stat::TopkEntropy));
    let fills_the_device = rows >= 4 * multiprocessors;
    if needs_whole_row || fills_the_device {
        1
    } else {
        width.div_ceil(geometry.chunk).max(1)
    }
}

fn geometry(rows: &Rows, stats: &[Stat]) -> Geometry {
    let reference = rows.reference.as_ref().filter(|_| reads_reference(stats));
    Geometry::new(
        rows.width(),
        rows.logits.dtype,
        reference.map(|view| view.dtype),
    )
}

fn reads_reference(stats: &[Stat]) -> bool {
    stats.iter().any(|stat| stat.needs_reference())
}

/// Numbers of the statistics' dtype that [`forward`] needs as workspace; 0 where rows are not split.
pub fn forward_workspace(
    logits: &Array,
    reference: Option<&Array>,
    stats: &[Stat],
    multiprocessors: usize,
) -> usize {
    const PARTIAL_NUMBERS: usize = 12;
    let Some((&width, lead)) = logits.shape.split_last() else {
        return 0;
    };
    let rows: usize = lead.iter().product();
    let geometry = Geometry::new(
        width,
        logits.dtype,
        reference
            .filter(|_| reads_reference(stats))
            .map(|view| view.dtype),
    );
    match parts(rows, width, &geometry, stats, multiprocessors) {
        1 => 0,
        parts => rows * parts * PARTIAL_NUMBERS,
    }
}

/// The launches that write the statistics `stats` into `out`; `workspace` is the address of what [`forward_workspace`] asks for.
pub fn forward(
    rows: &Rows,
    stats: &[Stat],
    k: usize,
    out: &Array,
    workspace: usize,
    multiprocessors: usize,
) -> Result<Vec<Launch>, ArgumentError> {
    rows.check_forward(stats, k, out)?;
    if rows.count() == 0 || stats.is_empty() {
        return Ok(Vec::new());
    }
    let geometry = geometry(rows, stats);
    let parts = parts(
        rows.count(),
        rows.width(),
        &geometry,
        stats,
        multiprocessors,
    );
    let mut args = arguments(rows, stats, reads_reference(stats), None)?;
    args.values = out.address;
    args.partials = workspace;
    args.parts = parts as i64;
    args.k = k.min(MAX_K) as i64;
    let program = |kernel, source| Program {
        kernel,
        source,
        defines: defines(rows, stats, &geometry),
    };
    let mut launches = vec![Launch::new(
        program("rows_forward", &source::ROWS_FORWARD),
        rows.count() * parts,
        geometry.rows_per_block(),
        &args,
    )];
    if parts > 1 {
        launches.push(Launch::new(
            program("rows_combine", &source::ROWS_COMBINE),
            rows.count(),
            THREADS as usize,
            &args,
        ));
    }
    Ok(launches)
}

/// The launch that writes d(Σ grads·stats)/dlogits into `gradient`, which may be the memory of the logits.
pub fn backward(
    rows: &Rows,
    stats: &[Stat],
    grads: &Array,
    saved: &Array,
    gradient: &Array,
) -> Result<Vec<Launch>, ArgumentError> {
    rows.check_backward(stats, grads, saved, gradient)?;
    if rows.logits.is_empty() {
        return Ok(Vec::new());
    }
    let read: Vec<Stat> = stats
        .iter()
        .copied()
        .filter(|&stat| is_read_by_backward(stat, stats))
        .collect();
    let geometry = geometry(rows, &read);
    let mut args = arguments(rows, stats, reads_reference(&read), Some(gradient))?;
    args.gradient = gradient.address;
    args.grads = grads.address;
    args.saved = saved.address;
    // Units begin at a 16-byte boundary of the gradient, up to one unit before the row does.
    args.parts = (rows.width() + geometry.unit - 1).div_ceil(geometry.chunk) as i64;
    let program = Program {
        kernel: "rows_backward",
        source: &source::ROWS_BACKWARD,
        defines: defines(rows, &read, &geometry),
    };
    let items = rows.count() * args.parts as usize;
    Ok(vec![Launch::new(
        program,
        items,
        geometry.rows_per_block(),
        &args,
    )])
}

/// How rows are held in shared memory by the kernel that visits them once.
#[derive(Debug, PartialEq)]
struct Hold {
    /// Blocks that share a row.
    cluster: usize,
    /// Chunks of a block.
    parts: usize,
    /// Bytes of dynamic shared memory of a block.
    shared: usize,
}

impl Hold {
    /// `None` where rows are too wide for clusters of the target, or it has none.
    fn new(width: usize, size: usize, geometry: &Geometry, target: Target) -> Option<Hold> {
        /// What every such device can do, unless it has fewer multiprocessors.
        const LARGEST_CLUSTER: usize = 8;
        /// More than the kernel's static shared memory.
        const STATIC: usize = 8192;
        let largest = LARGEST_CLUSTER.min(target.multiprocessors).max(1);
        let chunks = width.div_ceil(geometry.chunk).max(1);
        let parts = chunks.div_ceil(largest);
        let units = width.min(parts * geometry.chunk).div_ceil(geometry.unit);
        let shared = units * geometry.unit * size * geometry.rows_per_block();
        (target.capability >= FIRST_WITH_CLUSTERS && shared + STATIC <= target.shared).then_some(
            Hold {
                cluster: chunks.div_ceil(parts),
                parts,
                shared,
            },
        )
    }
}

/// Whether all rows of `view` begin at 16-byte boundaries.
fn has_aligned_rows(view: &Array, lead: usize) -> bool {
    let size = view.dtype.size();
    let steps = view.shape[..lead].iter().zip(&view.strides);
    view.address.is_multiple_of(16)
        && steps
            .filter(|(count, _)| **count > 1)
            .all(|(_, stride)| (stride.unsigned_abs() * size).is_multiple_of(16))
}

/// The launches that write the statistics `stats` into `out` and d(Σ grads·stats)/dlogits into `gradient`, which may be the memory
/// of the logits: one that visits each row once where it can be held, otherwise those of [`forward`] and [`backward`], whose
/// results are the same to the bit. `workspace` is the address of what [`forward_workspace`] asks for.
pub fn both(
    rows: &Rows,
    (stats, k): (&[Stat], usize),
    grads: &Array,
    out: &Array,
    gradient: &Array,
    workspace: usize,
    target: Target,
) -> Result<Vec<Launch>, ArgumentError> {
    rows.check_both((stats, k), grads, out, gradient)?;
    if rows.count() == 0 || stats.is_empty() {
        return Ok(Vec::new());
    }
    let geometry = geometry(rows, stats);
    let held = Hold::new(rows.width(), rows.logits.dtype.size(), &geometry, target);
    let Some(hold) = held.filter(|_| can_be_held(rows, stats, gradient)) else {
        let mut launches = forward(rows, stats, k, out, workspace, target.multiprocessors)?;
        launches.extend(backward(rows, stats, grads, out, gradient)?);
        return Ok(launches);
    };
    let mut args = arguments(rows, stats, false, Some(gradient))?;
    args.gradient = gradient.address;
    args.values = out.address;
    args.grads = grads.address;
    let mut defines = defines(rows, stats, &geometry);
    defines.push(("CLUSTER", hold.cluster.to_string()));
    defines.push(("PARTS", hold.parts.to_string()));
    let program = Program {
        kernel: "rows_both",
        source: &source::ROWS_BOTH,
        defines,
    };
    let launch = Launch::new(program, rows.count(), geometry.rows_per_block(), &args);
    Ok(vec![
        launch
            .in_clusters(hold.cluster as u32)
            .with_shared(hold.shared as u32),
    ])
}

/// Whether the kernel that visits rows once computes `stats` of rows that lie so.
fn can_be_held(rows: &Rows, stats: &[Stat], gradient: &Array) -> bool {
    let alone = !stats
        .iter()
        .any(|stat| stat.needs_reference() || matches!(stat, Stat::TopkMass | Stat::TopkEntropy));
    alone && has_aligned_rows(&rows.logits, rows.rank()) && has_aligned_rows(gradient, rows.rank())
}

/// Whether the backward kernel looks at `stat`: it has a gradient, or one of `stats` that has needs its value.
fn is_read_by_backward(stat: Stat, stats: &[Stat]) -> bool {
    let needed = stats
        .iter()
        .any(|other| other.has_gradient() && other.gradient_needs().contains(&stat));
    stat.has_gradient() || needed
}

fn defines(rows: &Rows, stats: &[Stat], geometry: &Geometry) -> Vec<(&'static str, String)> {
    let reference = rows
        .reference
        .as_ref()
        .filter(|_| reads_reference(stats))
        .unwrap_or(&rows.logits);
    let mask = stats
        .iter()
        .fold(0u32, |mask, &stat| mask | 1 << stat as u32);
    vec![
        ("LOGIT", rows.logits.dtype.name().to_owned()),
        ("REFERENCE", reference.dtype.name().to_owned()),
        ("STATS", format!("{mask:#x}")),
        ("ROW_THREADS", geometry.threads.to_string()),
        ("UNIT", geometry.unit.to_string()),
        ("CHUNK", geometry.chunk.to_string()),
        ("SOFTCAP", u32::from(rows.softcap != 0.0).to_string()),
    ]
}

fn arguments(
    rows: &Rows,
    stats: &[Stat],
    reads_reference: bool,
    gradient: Option<&Array>,
) -> Result<RowsArgs, ArgumentError> {
    let temperatures = match &rows.temperature {
        Temperature::Same(_) => None,
        Temperature::PerRow(view) => Some(view),
    };
    let reference = rows.reference.as_ref().filter(|_| reads_reference);
    let views = [
        Some(&rows.logits),
        reference,
        gradient,
        Some(&rows.labels),
        rows.mask.as_ref(),
        temperatures,
    ];
    let (shape, strides) = join_dimensions(rows.lead(), &views);
    if shape.len() > MAX_RANK {
        return Err(ArgumentError::Value(format!(
            "logits: {} leading dimensions that cannot be joined (shape {:?}, strides {:?}), expected at most {MAX_RANK}",
            shape.len(),
            rows.logits.shape,
            rows.logits.strides
        )));
    }
    let address = |view: Option<&Array>| view.map_or(0, |view| view.address);
    let [
        logits_stride,
        reference_stride,
        gradient_stride,
        labels_stride,
        mask_stride,
        temperature_stride,
    ] = strides;
    Ok(RowsArgs {
        logits: rows.logits.address,
        reference: address(reference),
        labels: rows.labels.address,
        mask: address(rows.mask.as_ref()),
        temperatures: address(temperatures),
        rows: rows.count() as i64,
        width: rows.width() as i64,
        ignore_index: rows.ignore_index,
        first_class: rows.first_class,
        classes: rows.classes,
        temperature_type: temperatures.map_or(0, |view| float_number(view.dtype)),
        rank: shape.len() as i64,
        shape: padded(&shape),
        logits_stride: padded(&logits_stride),
        reference_stride: padded(&reference_stride),
        gradient_stride: padded(&gradient_stride),
        labels_stride: padded(&labels_stride),
        mask_stride: padded(&mask_stride),
        temperature_stride: padded(&temperature_stride),
        slot: slots(stats)?,
        temperature: if let Temperature::Same(value) = rows.temperature {
            value
        } else {
            1.0
        },
        scale: rows.scale,
        softcap: rows.softcap,
        ..RowsArgs::default()
    })
}

/// The row of a `[stats, rows]` table that holds each statistic.
fn slots(stats: &[Stat]) -> Result<[i64; STATS], ArgumentError> {
    let mut slots = [-1; STATS];
    for (slot, &stat) in stats.iter().enumerate() {
        if slots[stat as usize] != -1 {
            return Err(ArgumentError::Value(format!(
                "stats: {:?} twice, expected each at most once",
                stat.name()
            )));
        }
        slots[stat as usize] = slot as i64;
    }
    Ok(slots)
}

/// A float dtype's number in `temperature_type`.
fn float_number(dtype: Dtype) -> i64 {
    match dtype {
        Dtype::F16 => 0,
        Dtype::Bf16 => 1,
        Dtype::F32 => 2,
        _ => 3,
    }
}

fn padded(values: &[i64]) -> [i64; MAX_RANK] {
    let mut all = [0; MAX_RANK];
    all[..values.len()].copy_from_slice(values);
    all
}

/// The leading dimensions with their strides in every view, neighbours joined where all views step through them evenly.
/// An absent view has stride 0 throughout.
fn join_dimensions<const N: usize>(
    lead: &[usize],
    views: &[Option<&Array>; N],
) -> (Vec<i64>, [Vec<i64>; N]) {
    let mut shape: Vec<i64> = Vec::new();
    let mut strides: [Vec<i64>; N] = std::array::from_fn(|_| Vec::new());
    for (dimension, &size) in lead.iter().enumerate().filter(|(_, size)| **size != 1) {
        let stride = |view: &Option<&Array>| view.map_or(0, |view| view.strides[dimension] as i64);
        let joins = !shape.is_empty()
            && views
                .iter()
                .zip(&strides)
                .all(|(view, above)| above[above.len() - 1] == stride(view) * size as i64);
        if joins {
            *shape.last_mut().expect("joined to the dimension before") *= size as i64;
        } else {
            shape.push(size as i64);
        }
        for (view, above) in views.iter().zip(&mut strides) {
            if joins {
                above.pop();
            }
            above.push(stride(view));
        }
    }
    (shape, strides)
}
