//! Columns of probabilities of strips of rows, on CUDA: which kernel runs for a call. The arithmetic is in `kernels/columns_*`.

use crate::array::{ArgumentError, Array, Dtype};
use crate::cuda::{Argument, Launch, Program, Source, THREADS, source};

/// Columns that a block of `columns_gather` takes; `PART` in the source.
const GATHERED: usize = 4 * THREADS as usize;

/// Rows and columns that a block of a product takes; `ROWS` and `COLUMNS` in the source.
const TILE: (usize, usize) = (256, 128);
/// Bytes of dynamic shared memory of such a block: `STAGES * STAGE_BYTES`.
const STAGES: u32 = 4 * (256 + 128) * 32 * 2;
/// Numbers of 16 bits that are brought at once.
const UNIT: usize = 8;

const DEFINES: &[&str] = &["LOGIT", "UNIT"];

/// Every kernel of columns: entry point, its file, the constants it is compiled with.
pub const PROGRAMS: &[source::Entry] = &[
    ("columns_find", &source::COLUMNS_FIND, DEFINES),
    ("columns_gather", &source::COLUMNS_GATHER, DEFINES),
    (
        "columns_add",
        &source::COLUMNS_ADD,
        &["SUM", "PRODUCT", "UNIT"],
    ),
    ("columns_to_input", &source::COLUMNS_TO_INPUT, &["NUMBER"]),
    ("columns_to_weight", &source::COLUMNS_TO_WEIGHT, &["NUMBER"]),
];

/// `ColumnsArgs` of `kernels/columns.cuh`.
#[repr(C)]
#[derive(Default)]
struct ColumnsArgs {
    logits: usize,
    factors: usize,
    lse: usize,
    labels: usize,
    active: usize,
    tails: usize,
    columns: usize,
    starts: usize,
    values: usize,
    sums: usize,
    rows: i64,
    width: i64,
    stride: i64,
    strip_rows: i64,
    parts: i64,
    eps: f64,
}

// SAFETY: `repr(C)`, 8-byte fields only, in the order of the source.
unsafe impl Argument for ColumnsArgs {}

/// `AddArgs` of `kernels/columns_add.cu`.
#[repr(C)]
struct AddArgs {
    sum: usize,
    product: usize,
    columns: usize,
    count: i64,
    size: i64,
    stride: i64,
}

// SAFETY: as above.
unsafe impl Argument for AddArgs {}

/// `ToInputArgs` of `kernels/columns_to_input.cu`.
#[repr(C)]
struct ToInputArgs {
    values: usize,
    columns: usize,
    strips: usize,
    weight: usize,
    factors: usize,
    tails: usize,
    means: usize,
    out: usize,
    count: i64,
    strip_rows: i64,
    size: i64,
    stride: i64,
}

// SAFETY: as above.
unsafe impl Argument for ToInputArgs {}

/// `ToWeightArgs` of `kernels/columns_to_weight.cu`.
#[repr(C)]
struct ToWeightArgs {
    sum: usize,
    values: usize,
    columns: usize,
    inputs: usize,
    rows: i64,
    count: i64,
    size: i64,
    stride: i64,
}

// SAFETY: as above.
unsafe impl Argument for ToWeightArgs {}

/// Rows of logits [N, V] in strips, and what makes probabilities of them.
pub struct Strips {
    pub logits: Array,
    /// [N] of the statistics' dtype: scale/temperature·log2(e).
    pub factors: Array,
    /// [N] of the statistics' dtype.
    pub lse: Array,
    /// [N] i64.
    pub labels: Array,
    /// Rows of a strip; the last may have fewer.
    pub strip_rows: usize,
}

impl Strips {
    fn rows(&self) -> usize {
        self.logits.shape[0]
    }

    fn width(&self) -> usize {
        self.logits.shape[1]
    }

    fn count(&self) -> usize {
        self.rows().div_ceil(self.strip_rows)
    }

    fn sum(&self) -> Dtype {
        match self.logits.dtype {
            Dtype::F64 => Dtype::F64,
            _ => Dtype::F32,
        }
    }

    /// Arguments that every kernel reads, if they fit together.
    fn arguments(&self) -> Result<ColumnsArgs, ArgumentError> {
        let logits = &self.logits;
        if logits.shape.len() != 2 || !logits.dtype.is_float() || self.strip_rows == 0 {
            return Err(ArgumentError::Value(format!(
                "logits: dtype {} of shape {:?} in strips of {}, expected floats of shape [N, V] in strips of at least 1",
                logits.dtype.name(),
                logits.shape,
                self.strip_rows
            )));
        }
        if logits.strides[1] != 1 && self.width() > 1 {
            return Err(ArgumentError::Value(format!(
                "logits: strides {:?}, expected rows of numbers that lie one behind the other",
                logits.strides
            )));
        }
        let rows = self.rows();
        expect("factors", &self.factors, self.sum(), &[rows])?;
        expect("lse", &self.lse, self.sum(), &[rows])?;
        expect("labels", &self.labels, Dtype::I64, &[rows])?;
        Ok(ColumnsArgs {
            logits: logits.address,
            factors: self.factors.address,
            lse: self.lse.address,
            labels: self.labels.address,
            rows: rows as i64,
            width: self.width() as i64,
            stride: logits.strides[0] as i64,
            strip_rows: self.strip_rows as i64,
            ..ColumnsArgs::default()
        })
    }

    fn launch(
        &self,
        kernel: &'static str,
        source: &'static Source,
        blocks: usize,
        args: &ColumnsArgs,
    ) -> Vec<Launch> {
        let dtype = self.logits.dtype;
        let defines = vec![
            ("LOGIT", dtype.name().to_owned()),
            ("UNIT", (16 / dtype.size()).to_string()),
        ];
        let program = Program {
            kernel,
            source,
            defines,
        };
        vec![Launch::new(program, blocks, 1, args)]
    }
}

/// The launch that writes which columns of each strip have a p ≥ eps, [strips, V] bool, and the `tails`, [strips, V], of the others.
pub fn find(
    strips: &Strips,
    eps: f64,
    active: &Array,
    tails: &Array,
) -> Result<Vec<Launch>, ArgumentError> {
    let args = strips.arguments()?;
    let shape = [strips.count(), strips.width()];
    expect("active", active, Dtype::Bool, &shape)?;
    expect("tails", tails, strips.logits.dtype, &shape)?;
    if strips.logits.is_empty() {
        return Ok(Vec::new());
    }
    let args = ColumnsArgs {
        active: active.address,
        tails: tails.address,
        eps,
        ..args
    };
    let unit = 16 / strips.logits.dtype.size();
    let across = strips.width().div_ceil(THREADS as usize * unit);
    Ok(strips.launch(
        "columns_find",
        &source::COLUMNS_FIND,
        strips.count() * across,
        &args,
    ))
}

/// Parts of a strip's columns that blocks share out; so many sums there are of each row.
pub fn parts(longest: usize) -> usize {
    longest.div_ceil(GATHERED)
}

/// What [`gather`] reads and writes beside the strips.
pub struct Gathered {
    /// [L] i64: the columns of all strips, filled up with −1.
    pub columns: Array,
    /// [strips + 1] i64, where each strip's begin.
    pub starts: Array,
    /// [strip_rows·L] of the logits' dtype.
    pub values: Array,
    /// [parts, N] of the statistics' dtype.
    pub sums: Array,
}

/// The launch that writes the probabilities in the columns, and what each row has in each part of them.
pub fn gather(strips: &Strips, gathered: &Gathered) -> Result<Vec<Launch>, ArgumentError> {
    let args = strips.arguments()?;
    let Gathered {
        columns,
        starts,
        values,
        sums,
    } = gathered;
    let listed = columns.len();
    expect("columns", columns, Dtype::I64, &[listed])?;
    expect("starts", starts, Dtype::I64, &[strips.count() + 1])?;
    expect(
        "values",
        values,
        strips.logits.dtype,
        &[strips.strip_rows * listed],
    )?;
    let parts = sums.shape.first().copied().unwrap_or(0);
    expect("sums", sums, strips.sum(), &[parts, strips.rows()])?;
    if strips.logits.is_empty() || parts == 0 {
        return Ok(Vec::new());
    }
    let args = ColumnsArgs {
        columns: columns.address,
        starts: starts.address,
        values: values.address,
        sums: sums.address,
        parts: parts as i64,
        ..args
    };
    Ok(strips.launch(
        "columns_gather",
        &source::COLUMNS_GATHER,
        strips.count() * parts,
        &args,
    ))
}

/// The launch that adds `product[i]` to `sum[columns[i]]`, where that is not negative; no two columns are equal. The sum may be a
/// slice of rows' numbers.
pub fn add(sum: &Array, product: &Array, columns: &Array) -> Result<Vec<Launch>, ArgumentError> {
    let floats = sum.dtype.is_float() && product.dtype.is_float();
    let in_rows = sum.shape.len() == 2 && (sum.strides[1] == 1 || sum.shape[1] <= 1);
    if !in_rows || !floats {
        return Err(ArgumentError::Value(format!(
            "sum: dtype {} of shape {:?} with strides {:?}, expected floats of shape [V, H] in rows of numbers that lie one behind the other",
            sum.dtype.name(),
            sum.shape,
            sum.strides
        )));
    }
    let (count, size) = (columns.len(), sum.shape[1]);
    expect("columns", columns, Dtype::I64, &[count])?;
    expect("product", product, product.dtype, &[count, size])?;
    if product.is_empty() {
        return Ok(Vec::new());
    }
    let args = AddArgs {
        sum: sum.address,
        product: product.address,
        columns: columns.address,
        count: count as i64,
        size: size as i64,
        stride: sum.strides[0] as i64,
    };
    let narrower = sum.dtype.size().min(product.dtype.size());
    let program = Program {
        kernel: "columns_add",
        source: &source::COLUMNS_ADD,
        defines: vec![
            ("SUM", sum.dtype.name().to_owned()),
            ("PRODUCT", product.dtype.name().to_owned()),
            ("UNIT", (16 / narrower).to_string()),
        ],
    };
    Ok(vec![Launch::new(program, count, 1, &args)])
}

/// What the gathered columns of all strips are multiplied with, and what that is written to.
pub struct ToInput {
    /// The probabilities of each strip, [rows, columns], one strip behind the other, f16 or bf16.
    pub values: Array,
    /// [L] i64: the columns of all strips, filled up with −1.
    pub columns: Array,
    /// [strips, 5] i64: first row, behind the last; where its columns begin, behind them; where its values begin.
    pub strips: Array,
    /// [V, H] of the values' dtype.
    pub weight: Array,
    /// [M] f32: what each row's product is multiplied by.
    pub factors: Array,
    /// [M] f32: what its strip's mean is multiplied by.
    pub tails: Array,
    /// [strips, H] f32.
    pub means: Array,
    /// [M, H] f32.
    pub out: Array,
    /// The most rows that a strip has.
    pub strip_rows: usize,
}

/// The launch that writes what columns and means give the inputs.
pub fn to_input(call: &ToInput) -> Result<Vec<Launch>, ArgumentError> {
    let weight = &call.weight;
    in_units("weight", weight)?;
    let (size, strips) = (
        weight.shape[1],
        call.means.shape.first().copied().unwrap_or(0),
    );
    let rows = call.out.shape.first().copied().unwrap_or(0);
    expect("values", &call.values, weight.dtype, &[call.values.len()])?;
    expect("columns", &call.columns, Dtype::I64, &[call.columns.len()])?;
    expect("strips", &call.strips, Dtype::I64, &[strips, 5])?;
    expect("factors", &call.factors, Dtype::F32, &[rows])?;
    expect("tails", &call.tails, Dtype::F32, &[rows])?;
    expect("means", &call.means, Dtype::F32, &[strips, size])?;
    expect("out", &call.out, Dtype::F32, &[rows, size])?;
    at_units("values", &call.values)?;
    if call.out.is_empty() {
        return Ok(Vec::new());
    }
    let args = ToInputArgs {
        values: call.values.address,
        columns: call.columns.address,
        strips: call.strips.address,
        weight: weight.address,
        factors: call.factors.address,
        tails: call.tails.address,
        means: call.means.address,
        out: call.out.address,
        count: strips as i64,
        strip_rows: call.strip_rows as i64,
        size: size as i64,
        stride: weight.strides[0] as i64,
    };
    let program = ("columns_to_input", &source::COLUMNS_TO_INPUT, weight.dtype);
    let tiles = strips * tiles(call.strip_rows, size);
    Ok(vec![product(program, tiles, &args)])
}

/// The launch that adds what a strip's columns give the weight: `values.T @ inputs` to rows `columns` of `sum`, where these are not
/// negative; no two are equal.
pub fn to_weight(
    sum: &Array,
    values: &Array,
    columns: &Array,
    inputs: &Array,
) -> Result<Vec<Launch>, ArgumentError> {
    in_units("values", values)?;
    in_units("inputs", inputs)?;
    let ([rows, count], size) = ([values.shape[0], values.shape[1]], inputs.shape[1]);
    expect("values", values, inputs.dtype, &[rows, count])?;
    expect("columns", columns, Dtype::I64, &[count])?;
    expect("inputs", inputs, values.dtype, &[rows, size])?;
    let in_rows = sum.shape.len() == 2 && sum.shape[1] == size && sum.strides[1] == 1;
    if !in_rows
        || sum.dtype != Dtype::F32
        || sum.strides[0] % 2 != 0
        || !sum.address.is_multiple_of(8)
    {
        return Err(ArgumentError::Value(format!(
            "sum: dtype {} of shape {:?} with strides {:?}, expected f32 of shape [V, {size}] in rows that begin at 8-byte boundaries",
            sum.dtype.name(),
            sum.shape,
            sum.strides
        )));
    }
    if values.is_empty() || inputs.is_empty() {
        return Ok(Vec::new());
    }
    let args = ToWeightArgs {
        sum: sum.address,
        values: values.address,
        columns: columns.address,
        inputs: inputs.address,
        rows: rows as i64,
        count: count as i64,
        size: size as i64,
        stride: sum.strides[0] as i64,
    };
    let program = (
        "columns_to_weight",
        &source::COLUMNS_TO_WEIGHT,
        values.dtype,
    );
    Ok(vec![product(program, tiles(count, size), &args)])
}

/// Blocks of a product of so many rows and columns.
fn tiles(rows: usize, columns: usize) -> usize {
    rows.div_ceil(TILE.0) * columns.div_ceil(TILE.1)
}

/// The launch of a product of 16-bit numbers.
fn product(
    (kernel, source, number): (&'static str, &'static Source, Dtype),
    tiles: usize,
    args: &impl Argument,
) -> Launch {
    let program = Program {
        kernel,
        source,
        defines: vec![("NUMBER", number.name().to_owned())],
    };
    Launch::new(program, tiles, 1, args).with_shared(STAGES)
}

/// That the rows of a matrix are of 16-bit numbers that can be brought by 16 bytes.
fn in_units(name: &str, matrix: &Array) -> Result<(), ArgumentError> {
    let halves = matches!(matrix.dtype, Dtype::F16 | Dtype::Bf16) && matrix.shape.len() == 2;
    if halves
        && matrix.shape[1].is_multiple_of(UNIT)
        && (matrix.strides[1] == 1 || matrix.shape[1] <= 1)
        && matrix.strides[0] % UNIT as isize == 0
        && matrix.address.is_multiple_of(16)
    {
        return Ok(());
    }
    Err(ArgumentError::Value(format!(
        "{name}: dtype {} of shape {:?} with strides {:?}, expected a matrix of f16 or bf16 whose rows are whole units of {UNIT} numbers at 16-byte boundaries",
        matrix.dtype.name(),
        matrix.shape,
        matrix.strides
    )))
}

fn at_units(name: &str, array: &Array) -> Result<(), ArgumentError> {
    if array.address.is_multiple_of(16) {
        return Ok(());
    }
    Err(ArgumentError::Value(format!(
        "{name}: expected to begin at a 16-byte boundary"
    )))
}

fn expect(name: &str, array: &Array, dtype: Dtype, shape: &[usize]) -> Result<(), ArgumentError> {
    if array.dtype == dtype && array.shape == shape && array.is_contiguous() {
        return Ok(());
    }
    Err(ArgumentError::Value(format!(
        "{name}: dtype {}, shape {:?}, strides {:?}, expected {} of shape {shape:?}, contiguous",
        array.dtype.name(),
        array.shape,
        array.strides,
        dtype.name()
    )))
}
