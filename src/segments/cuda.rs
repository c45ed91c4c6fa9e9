//! Ragged sums on CUDA: which kernel runs for a call. The arithmetic is in `kernels/segments.cu`.

use crate::array::{ArgumentError, Array, Dtype};
use crate::cuda::{Argument, Launch, Program, source};

/// Every kernel of segments: entry point, its file, the constants it is compiled with.
pub const PROGRAMS: &[crate::cuda::source::Entry] = &[
    ("segment_sum", &source::SEGMENTS, &["VALUE"]),
    ("segment_expand", &source::SEGMENTS, &["VALUE"]),
];

/// `SegmentArgs` of `kernels/segments.cu`.
#[repr(C)]
struct SegmentArgs {
    values: usize,
    offsets: usize,
    out: usize,
    segments: i64,
    length: i64,
}

// SAFETY: `repr(C)`, 8-byte fields only, in the order of the source.
unsafe impl Argument for SegmentArgs {}

/// The launch that writes Σ values[offsets[r]..offsets[r + 1]] into `out[r]`.
pub fn sum(values: &Array, offsets: &Array, out: &Array) -> Result<Vec<Launch>, ArgumentError> {
    launch("segment_sum", (values, offsets, out), out, values)
}

/// The launch that writes values[r] into `out[offsets[r]..offsets[r + 1]]`.
pub fn expand(values: &Array, offsets: &Array, out: &Array) -> Result<Vec<Launch>, ArgumentError> {
    launch("segment_expand", (values, offsets, out), values, out)
}

fn launch(
    kernel: &'static str,
    (values, offsets, out): (&Array, &Array, &Array),
    per_segment: &Array,
    packed: &Array,
) -> Result<Vec<Launch>, ArgumentError> {
    for (name, view) in [("values", values), ("offsets", offsets), ("out", out)] {
        check_vector(name, view)?;
    }
    let segments = offsets.len().saturating_sub(1);
    if offsets.dtype != Dtype::I64 || offsets.is_empty() || per_segment.len() != segments {
        return Err(ArgumentError::Value(format!(
            "offsets: dtype {}, shape {:?}, expected i64 of shape [{}], one more than there are segments",
            offsets.dtype.name(),
            offsets.shape,
            per_segment.len() + 1
        )));
    }
    if !matches!(values.dtype, Dtype::F32 | Dtype::F64) || out.dtype != values.dtype {
        return Err(ArgumentError::Type(format!(
            "values: dtype {} into {}, expected f32 or f64, both the same",
            values.dtype.name(),
            out.dtype.name()
        )));
    }
    if segments == 0 {
        return Ok(Vec::new());
    }
    let args = SegmentArgs {
        values: values.address,
        offsets: offsets.address,
        out: out.address,
        segments: segments as i64,
        length: packed.len() as i64,
    };
    let program = Program {
        kernel,
        source: &source::SEGMENTS,
        defines: vec![("VALUE", values.dtype.name().to_owned())],
    };
    Ok(vec![Launch::new(program, segments, 1, &args)])
}

fn check_vector(name: &str, view: &Array) -> Result<(), ArgumentError> {
    if view.shape.len() != 1 || !view.is_contiguous() {
        return Err(ArgumentError::Value(format!(
            "{name}: shape {:?} with strides {:?}, expected a contiguous vector",
            view.shape, view.strides
        )));
    }
    Ok(())
}
