// One row = one label token with its V logits: where it lies, how raw logits become z, what a traversal remembers.
// The logits may be a block of a larger vocabulary: the classes [first_class, first_class + V) of `classes`.
//
//   z = softcap·tanh(scale·x/softcap)/T  (softcap off: scale·x/T);   z·log2(e) = c·t,  t = tanh(bend·x) or x,  c > 0
//
// Compile-time constants: LOGIT, REFERENCE  element types (f16 bf16 f32 f64)
//                         STATS             bit set of the statistics that are wanted (1 << Stat)
//                         ROW_THREADS       threads that share a row: 32 (a warp) or 256 (a block)
//                         UNIT              elements that a thread takes at once: 16 bytes of the narrower array
//                         CHUNK             elements that are summed before they meet the rest of the row: 16 units per thread
//                         SOFTCAP           0 or 1

#ifndef PREFUSE_ROWS_CUH
#define PREFUSE_ROWS_CUH

#include "units.cuh"

typedef typename Accumulator<LOGIT>::type A;

enum Stat { LOGP, LSE, ENTROPY, LOG_SUM_SQ, MEAN_LOGIT, TOP1, TOPK_MASS, TOPK_ENTROPY, REF_LOGP, REF_LSE, KL, RKL, STAT_COUNT };
__device__ constexpr bool wants(int stat) { return STATS >> stat & 1; }
constexpr bool WANTS_REFERENCE = wants(REF_LOGP) || wants(REF_LSE) || wants(KL) || wants(RKL);
constexpr bool WANTS_TOPK = wants(TOPK_MASS) || wants(TOPK_ENTROPY);

constexpr int THREADS = 256, GROUPS = THREADS / ROW_THREADS, MAX_RANK = 6, MAX_K = 64;
constexpr int UNROLL = WANTS_REFERENCE ? 1 : sizeof(LOGIT) == 8 ? 2 : 4;  // units in flight per thread and array
constexpr i64 STEP = i64(ROW_THREADS) * UNIT;       // elements between the units of one thread
constexpr i64 TILE = UNROLL * STEP;
// Resident blocks per multiprocessor: as many as there are registers for without spilling.
constexpr int BLOCKS = sizeof(A) == 8 ? (WANTS_REFERENCE ? 1 : 2) : WANTS_REFERENCE || WANTS_TOPK || SOFTCAP ? 2 : 3;

typedef Row<LOGIT, UNIT> X;
typedef Row<REFERENCE, UNIT> Ref;

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

// What is known of a row before its logits are read.
struct Header {
    i64 label;             // its place in the row; V, behind the last, where it belongs to another block
    bool ignored, broken;  // broken: label outside [0, classes) or temperature not a positive number; the row becomes NaN
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

__device__ inline Header header(const RowsArgs& a, i64 row) {
    Header h;
    h.label = __ldcs(a.labels + offset(a, row, a.labels_stride));
    h.ignored = h.label == a.ignore_index || (a.mask && !__ldcs(a.mask + offset(a, row, a.mask_stride)));
    h.temperature = A(a.temperature);
    if (a.temperatures && !h.ignored) h.temperature = row_temperature(a, offset(a, row, a.temperature_stride));
    bool temperate = h.temperature > 0 && h.temperature < infinity<A>();
    h.broken = !h.ignored && (h.label < 0 || h.label >= a.classes || !temperate);
    h.label -= a.first_class;
    if (h.label < 0 || h.label > a.width) h.label = a.width;
    return h;
}

// The label's logit; of one in another block −inf, the logit of a class that has no mass here.
template <typename T> __device__ inline A label_logit(const T* row, i64 width, const Header& h) {
    return h.label < width ? load(row + h.label) : -infinity<A>();
}

__device__ inline A bend(const RowsArgs& a) { return A(a.scale) / A(a.softcap); }
// dz/dt; times log2(e) it is c.
__device__ inline A slope(const RowsArgs& a, A temperature) { return A(SOFTCAP ? a.softcap : a.scale) / temperature; }
__device__ inline A bent(A x, A bend) { return SOFTCAP ? tanh_of(bend * x) : x; }

// What a traversal remembers of one set of logits. Exponentials are relative to the largest element seen: e = 2^(c·t − peak).
struct Softmax {
    A peak, sum;  // Σ e
    A moment;     // Σ e·log2 e
    A squares;    // Σ e²
    A cross;      // Σ e·(t − t of the other logits)

    // Before the first finite element: subtracting 0 instead of −inf keeps 2^(−inf − base) = 0.
    __device__ A base() const { return peak == -infinity<A>() ? A(0) : peak; }
    __device__ void raise(A top) {
        if (!(top > peak)) return;
        A drop = sum > 0 ? peak - top : A(0), shrink = exp2_of(peak - top);
        moment = shrink * fma_of(drop, sum, moment);
        cross = shrink > 0 ? shrink * cross : A(0);
        squares *= shrink * shrink, sum *= shrink, peak = top;
    }
};

struct Partial {
    Softmax policy, reference;
    A total;   // Σ t
    A beaten;  // > 0: some element stands before the label in the order of argmax
};

__device__ inline Partial nothing() {
    Softmax none = {-infinity<A>(), 0, 0, 0, 0};
    return {none, none, 0, 0};
}

__device__ inline void merge(Softmax& a, Softmax b) {
    a.raise(b.peak), b.raise(a.peak);
    a.sum += b.sum, a.moment += b.moment, a.squares += b.squares, a.cross += b.cross;
}
__device__ inline void merge(Partial& a, const Partial& b) {
    merge(a.policy, b.policy);
    if (WANTS_REFERENCE) merge(a.reference, b.reference);
    a.total += b.total, a.beaten += b.beaten;
}

// What the statistics need of somebody else's partial, number by number as `from` fetches it.
template <typename From> __device__ inline Softmax fetched(const Softmax& s, From from) {
    Softmax other = {from(s.peak), from(s.sum), 0, 0, 0};
    if (wants(ENTROPY)) other.moment = from(s.moment);
    if (wants(LOG_SUM_SQ)) other.squares = from(s.squares);
    if (wants(KL) || wants(RKL)) other.cross = from(s.cross);
    return other;
}
template <typename From> __device__ inline Partial fetched(const Partial& p, From from) {
    Partial other = nothing();
    other.policy = fetched(p.policy, from);
    if (WANTS_REFERENCE) other.reference = fetched(p.reference, from);
    if (wants(MEAN_LOGIT)) other.total = from(p.total);
    if (wants(TOP1)) other.beaten = from(p.beaten);
    return other;
}

struct Across {
    int distance;
    __device__ A operator()(const A& x) const { return __shfl_xor_sync(0xffffffffu, x, distance); }
};
// The partials of a warp's lanes in one, the same bits in every lane: merge() is commutative.
__device__ inline void merge_warp(Partial& p) {
#pragma unroll 1
    for (int distance = 16; distance; distance /= 2) merge(p, fetched(p, Across{distance}));
}

#endif
