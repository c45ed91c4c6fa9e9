// Columns of probabilities: a strip is some thousand consecutive rows of logits, and most of its mass is in the few columns in which some
// row has a probability of at least eps. Included by columns_find.cu and columns_gather.cu.
//
//   p_rj = 2^(factor_r·x_rj − lse_r·log2(e)),   factor_r = scale/T_r·log2(e)
//
// A row's own label counts for nothing here, nor does a row whose lse is no finite number: its p are 0.
//
// Compile-time constants: LOGIT  element type (f16 bf16 f32 f64)
//                         UNIT   elements that a thread takes at once: 16 bytes

#ifndef PREFUSE_COLUMNS_CUH
#define PREFUSE_COLUMNS_CUH

#include "units.cuh"

typedef typename Accumulator<LOGIT>::type A;

constexpr int THREADS = 256;
constexpr int IN_FLIGHT = 4;  // rows that a thread loads before it looks at the first
typedef Row<LOGIT, UNIT> X;

struct ColumnsArgs {
    const LOGIT* logits;   // [rows, width], rows `stride` elements apart
    const A* factors;      // [rows]
    const A* lse;          // [rows]
    const i64* labels;     // [rows]; what is no number of a column is no label
    u8* active;            // find: [strips, width], whether a column is to be gathered
    LOGIT* tails;          // find: [strips, width], Σ_r p_rj / eps where it is not, else 0
    const i64* columns;    // gather: those of each strip, filled up with −1
    const i64* starts;     // gather: [strips + 1], where each strip's begin in `columns`
    LOGIT* values;         // gather: [strip_rows, count] for each strip, one behind the other
    A* sums;               // gather: [parts, rows], Σ_j p_rj over a part of the strip's columns
    i64 rows, width, stride, strip_rows, parts;
    f64 eps;
};

__device__ inline i64 strip_count(const ColumnsArgs& a) { return (a.rows + a.strip_rows - 1) / a.strip_rows; }
// Behind the last row of a strip.
__device__ inline i64 strip_end(const ColumnsArgs& a, i64 strip) {
    const i64 end = (strip + 1) * a.strip_rows;
    return end < a.rows ? end : a.rows;
}

// What turns a row's logits into probabilities.
struct RowFactors {
    A factor, offset;
    int label;   // NO_LABEL: no column is; ALL_LABELS: all probabilities are 0
    __device__ A probability(A x) const { return exp2_of(fma_of(factor, x, offset)); }
};
constexpr int NO_LABEL = -1, ALL_LABELS = -2;

// Those of a row; what is no row of the strip has no probabilities.
__device__ inline RowFactors row_factors(const ColumnsArgs& a, i64 row, i64 end) {
    if (row >= end) return {0, 0, ALL_LABELS};
    A lse = load(a.lse + row);
    i64 label = __ldcs(a.labels + row);
    if (!(lse - lse == 0)) return {0, 0, ALL_LABELS};
    return {load(a.factors + row), -lse * A(LOG2E), label < 0 || label >= a.width ? NO_LABEL : int(label)};
}

#endif
