// One row = one label token with its V logits: where it is in memory, how raw logits x become z, what a pass over them accumulates.
// Included by the kernels rows_*.cu. The logits may be a block of a larger vocabulary: the classes [first_class, first_class + V) of
// `classes`.
//
//   z = softcap·tanh(scale·x/softcap)/T  (no soft cap: scale·x/T)
//   z = z_scale·t,   t = tanh(softcap_slope·x) (no soft cap: x),   z·log2(e) = c·t,   c > 0
//
// Accumulated is an online softmax in base 2: sums of 2^(c·t − max), max being the largest c·t so far; where it grows, the sums are
// rescaled. merge() joins the sums of two parts of a row. It is commutative, and parts are merged in an order that follows from
// the width alone, so a row gives the same bits whatever else is in the batch.
//
// A block is 256 threads. A row belongs to ROW_THREADS of them: to the block, or to one of its 8 warps where it is short.
//
// Compile-time constants: LOGIT, REFERENCE  element types (f16 bf16 f32 f64)
//                         STATS             bit set of the statistics that are computed or differentiated (1 << Stat)
//                         ROW_THREADS       threads that share a row: 32 (a warp) or 256 (a block)
//                         UNIT              elements that a thread takes at once: 16 bytes of the narrower array
//                         CHUNK             elements that are summed before they are merged with the rest: 16 units per thread
//                         SOFTCAP           0 or 1

#ifndef PREFUSE_ROWS_CUH
#define PREFUSE_ROWS_CUH

#include "units.cuh"

typedef typename Accumulator<LOGIT>::type A;

enum Stat { LOGP, LSE, ENTROPY, LOG_SUM_SQ, MEAN_LOGIT, TOP1, TOPK_MASS, TOPK_ENTROPY, REF_LOGP, REF_LSE, KL, RKL, STAT_COUNT };
__device__ constexpr bool needs(int stat) { return STATS >> stat & 1; }
constexpr bool NEEDS_REFERENCE = needs(REF_LOGP) || needs(REF_LSE) || needs(KL) || needs(RKL);
constexpr bool NEEDS_TOPK = needs(TOPK_MASS) || needs(TOPK_ENTROPY);

constexpr int THREADS = 256, ROWS_PER_BLOCK = THREADS / ROW_THREADS, MAX_RANK = 6, MAX_K = 64;
// Units in flight per thread and array.
constexpr int UNROLL = sizeof(LOGIT) == 8 ? (NEEDS_REFERENCE ? 1 : 2) : NEEDS_REFERENCE ? 2 : 4;
constexpr i64 STEP = i64(ROW_THREADS) * UNIT;       // elements between the units of one thread
constexpr i64 TILE = UNROLL * STEP;
// Blocks resident on a multiprocessor: as many as there are registers for without spilling.
constexpr int RESIDENT_BLOCKS = sizeof(A) == 8 ? (NEEDS_REFERENCE ? 1 : 2) : NEEDS_REFERENCE || NEEDS_TOPK || SOFTCAP ? 2 : 3;

typedef Row<LOGIT, UNIT> X;
typedef Row<REFERENCE, UNIT> Ref;

// Whether exponential i of a unit is computed on the FMA pipes. WORTH: the kernel does little beside exponentials, so that these bound it.
constexpr bool FEW_LOGITS_PER_UNIT = UNIT < ONE_ON_FMA_IN || sizeof(LOGIT) != 2 || SOFTCAP;
template <bool WORTH> __device__ inline A exp2_of_unit(int i, A x) {
    const bool on_fma = WORTH && ONE_ON_FMA_IN && !FEW_LOGITS_PER_UNIT && (i + 1) % (ONE_ON_FMA_IN ? ONE_ON_FMA_IN : 1) == 0;
    return on_fma ? A(exp2_on_fma(float(x))) : exp2_of(x);
}

// Shapes and strides in elements; every array has its own strides over the same `rank` leading dimensions.
struct RowsArgs {
    const LOGIT* logits;
    const REFERENCE* reference;
    LOGIT* gradient;
    const i64* labels;
    const u8* mask;             // null: no row is masked
    const void* temperatures;   // null: `temperature` for all; otherwise of type temperature_type, 0 f16, 1 bf16, 2 f32, 3 f64
    A* values;                  // forward: the statistics [S, N]
    const A* grads;             // backward: upstream gradients [S, N]
    const A* saved;             // backward: statistics [S, N] from forward
    void* partials;             // [N, parts] where a row is split over blocks
    i64 rows, width, parts, k, ignore_index, first_class, classes, temperature_type, rank;
    i64 shape[MAX_RANK], logits_stride[MAX_RANK], reference_stride[MAX_RANK], gradient_stride[MAX_RANK];
    i64 labels_stride[MAX_RANK], mask_stride[MAX_RANK], temperature_stride[MAX_RANK];
    i64 slot[STAT_COUNT];       // which row of the tables holds a statistic
    f64 temperature, scale, softcap;
};

__device__ inline i64 offset(const RowsArgs& a, i64 row, const i64* stride) {
    i64 sum = 0;
#pragma unroll 1
    for (int d = int(a.rank) - 1; d > 0; d--) {
        sum += row % a.shape[d] * stride[d];
        row /= a.shape[d];
    }
    return a.rank > 0 ? sum + row * stride[0] : 0;
}

// What is known of a row before its logits are read: its label, whether it counts, its temperature.
struct RowInfo {
    i64 label;             // its place in the row; V, behind the last, where it belongs to another block
    bool ignored, invalid;  // invalid: label outside [0, classes) or temperature not a positive number; the row becomes NaN
    A temperature;
};

__device__ inline A row_temperature(const RowsArgs& a, i64 at) {
    switch (a.temperature_type) {
    case 0: return A(load((const f16*)a.temperatures + at));
    case 1: return A(load((const bf16*)a.temperatures + at));
    case 2: return A(load((const f32*)a.temperatures + at));
    default: return A(load((const f64*)a.temperatures + at));
    }
}

__device__ inline RowInfo row_info(const RowsArgs& a, i64 row) {
    RowInfo info;
    info.label = __ldcs(a.labels + offset(a, row, a.labels_stride));
    info.ignored = info.label == a.ignore_index || (a.mask && !__ldcs(a.mask + offset(a, row, a.mask_stride)));
    info.temperature = A(a.temperature);
    if (a.temperatures && !info.ignored) info.temperature = row_temperature(a, offset(a, row, a.temperature_stride));
    bool valid_temperature = info.temperature > 0 && info.temperature < infinity<A>();
    info.invalid = !info.ignored && (info.label < 0 || info.label >= a.classes || !valid_temperature);
    info.label -= a.first_class;
    if (info.label < 0 || info.label > a.width) info.label = a.width;
    return info;
}

// The label's logit; −inf, the logit of a class that has no mass here, where it belongs to another block of the vocabulary.
template <typename T> __device__ inline A label_logit(const T* row, i64 width, const RowInfo& info) {
    return info.label < width ? load(row + info.label) : -infinity<A>();
}

__device__ inline A softcap_slope(const RowsArgs& a) { return A(a.scale) / A(a.softcap); }
// What t is multiplied by to give z; times log2(e) it is c.
__device__ inline A z_scale(const RowsArgs& a, A temperature) { return A(SOFTCAP ? a.softcap : a.scale) / temperature; }
__device__ inline A softcapped(A x, A softcap_slope) { return SOFTCAP ? tanh_of(softcap_slope * x) : x; }

// The sums of one set of logits. Exponentials are relative to the largest element seen: e = 2^(c·t − max).
struct OnlineSoftmax {
    A max;        // of c·t
    A sum;        // Σ e
    A moment;     // Σ e·log2 e
    A squares;    // Σ e²
    A cross;      // Σ e·(t − t of the other logits)

    // Before the first finite element: subtracting 0 instead of −inf keeps 2^(−inf − finite_max) = 0.
    __device__ A finite_max() const { return max == -infinity<A>() ? A(0) : max; }
    __device__ void rescale(A new_max) {
        if (!(new_max > max)) return;
        A difference = sum > 0 ? max - new_max : A(0), shrink = exp2_of(max - new_max);
        moment = shrink * fma_of(difference, sum, moment);
        cross = shrink > 0 ? shrink * cross : A(0);
        squares *= shrink * shrink, sum *= shrink, max = new_max;
    }
};

struct Partial {
    OnlineSoftmax policy, reference;
    A logit_sum;  // Σ t
    A outranked;  // > 0: some element comes before the label in the order of argmax
};

__device__ inline Partial empty_partial() {
    OnlineSoftmax none = {-infinity<A>(), 0, 0, 0, 0};
    return {none, none, 0, 0};
}

__device__ inline void merge(OnlineSoftmax& a, OnlineSoftmax b) {
    a.rescale(b.max), b.rescale(a.max);
    a.sum += b.sum, a.moment += b.moment, a.squares += b.squares, a.cross += b.cross;
}
__device__ inline void merge(Partial& a, const Partial& b) {
    merge(a.policy, b.policy);
    if (NEEDS_REFERENCE) merge(a.reference, b.reference);
    a.logit_sum += b.logit_sum, a.outranked += b.outranked;
}

// Copies a partial number by number, only the sums that the statistics need; `copy` does one.
template <typename Copy> __device__ inline void copy_sums(OnlineSoftmax& to, const OnlineSoftmax& s, Copy copy) {
    copy(to.max, s.max), copy(to.sum, s.sum);
    if (needs(ENTROPY)) copy(to.moment, s.moment);
    if (needs(LOG_SUM_SQ)) copy(to.squares, s.squares);
    if (needs(KL) || needs(RKL)) copy(to.cross, s.cross);
}
template <typename Copy> __device__ inline void copy_sums(Partial& to, const Partial& p, Copy copy) {
    copy_sums(to.policy, p.policy, copy);
    if (NEEDS_REFERENCE) copy_sums(to.reference, p.reference, copy);
    if (needs(MEAN_LOGIT)) copy(to.logit_sum, p.logit_sum);
    if (needs(TOP1)) copy(to.outranked, p.outranked);
}
// A copy of another's partial.
template <typename Copy> __device__ inline Partial fetched(const Partial& p, Copy copy) {
    Partial other = empty_partial();
    copy_sums(other, p, copy);
    return other;
}

struct Here {
    __device__ void operator()(A& to, const A& x) const { to = x; }
};
struct FromLane {
    int distance;
    __device__ A operator()(const A& x) const { return __shfl_xor_sync(0xffffffffu, x, distance); }
    __device__ void operator()(A& to, const A& x) const { to = (*this)(x); }
};
// The partials of a warp's lanes in one, the same bits in every lane: merge() is commutative.
__device__ inline void merge_warp(Partial& p) {
#pragma unroll 1
    for (int distance = 16; distance; distance /= 2) merge(p, fetched(p, FromLane{distance}));
}

#endif
