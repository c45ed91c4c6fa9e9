//! Squared distances on CUDA: which kernels run for a call. The arithmetic is in `kernels/distance_*`.

use super::{CHUNK, Samples};
use crate::array::{ArgumentError, Array};
use crate::cuda::{Argument, Launch, Program, Source, THREADS, source};

const DEFINES: &[&str] = &["FIRST", "SECOND", "UNIT", "CHUNK"];

/// Every kernel of distances: entry point, its file, the constants it is compiled with.
pub const PROGRAMS: &[crate::cuda::source::Entry] = &[
    ("distance_forward", &source::DISTANCE_FORWARD, DEFINES),
    ("distance_combine", &source::DISTANCE_COMBINE, DEFINES),
    ("distance_backward", &source::DISTANCE_BACKWARD, DEFINES),
];

/// `DistanceArgs` of `kernels/distances.cuh`.
#[repr(C)]
#[derive(Default)]
struct DistanceArgs {
    first: usize,
    second: usize,
    gradient: usize,
    grads: usize,
    out: usize,
    partials: usize,
    samples: i64,
    size: i64,
    parts: i64,
    first_stride: i64,
    second_stride: i64,
}

// SAFETY: `repr(C)`, 8-byte fields only, in the order of the source.
unsafe impl Argument for DistanceArgs {}

/// f64 numbers of workspace that [`forward`] needs: the sums of chunks, where a sample is not just one.
pub fn workspace(samples: &Samples) -> usize {
    match samples.parts() {
        1 => 0,
        parts => samples.count() * parts,
    }
}

/// The launches that write ‖first − second‖² of each sample into `out`; `partials` is the address of the workspace.
pub fn forward(
    samples: &Samples,
    out: &Array,
    partials: usize,
) -> Result<Vec<Launch>, ArgumentError> {
    samples.check_forward(out)?;
    let whole = samples.parts() == 1;
    let args = DistanceArgs {
        out: out.address,
        partials: if whole { 0 } else { partials },
        ..arguments(samples)
    };
    let mut launches = Vec::new();
    if !samples.first.is_empty() {
        launches.push(per_chunk(
            program("distance_forward", &source::DISTANCE_FORWARD, samples),
            samples,
            &args,
        ));
    }
    if !whole && samples.count() > 0 {
        let program = program("distance_combine", &source::DISTANCE_COMBINE, samples);
        launches.push(Launch::new(
            program,
            samples.count(),
            THREADS as usize,
            &args,
        ));
    }
    Ok(launches)
}

/// The launch that writes 2·grads·(first − second) into `gradient`.
pub fn backward(
    samples: &Samples,
    grads: &Array,
    gradient: &Array,
) -> Result<Vec<Launch>, ArgumentError> {
    samples.check_backward(grads, gradient)?;
    if samples.first.is_empty() {
        return Ok(Vec::new());
    }
    let args = DistanceArgs {
        grads: grads.address,
        gradient: gradient.address,
        ..arguments(samples)
    };
    let program = program("distance_backward", &source::DISTANCE_BACKWARD, samples);
    Ok(vec![per_chunk(program, samples, &args)])
}

fn per_chunk(program: Program, samples: &Samples, args: &DistanceArgs) -> Launch {
    let chunks = samples.count() * samples.parts();
    Launch::new(program, chunks, 1, args)
}

fn arguments(samples: &Samples) -> DistanceArgs {
    DistanceArgs {
        first: samples.first.address,
        second: samples.second.address,
        samples: samples.count() as i64,
        size: samples.size() as i64,
        parts: samples.parts() as i64,
        first_stride: samples.first.strides[0] as i64,
        second_stride: samples.second.strides[0] as i64,
        ..DistanceArgs::default()
    }
}

fn program(kernel: &'static str, source: &'static Source, samples: &Samples) -> Program {
    let (first, second) = (samples.first.dtype, samples.second.dtype);
    Program {
        kernel,
        source,
        defines: vec![
            ("FIRST", first.name().to_owned()),
            ("SECOND", second.name().to_owned()),
            ("UNIT", (16 / first.size().min(second.size())).to_string()),
            ("CHUNK", CHUNK.to_string()),
        ],
    }
}
