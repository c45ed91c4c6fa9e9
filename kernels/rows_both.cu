// Statistics and gradient of N rows of V logits in one visit, for upstream gradients that are known beforehand: what rows_forward
// and then rows_backward compute (the formulas are there), to the bit.
//
// Traffic: each logit is read once and its gradient written once, over the logits themselves if asked: 4 bytes per 16-bit logit,
// 8 per f32, 16 per f64; the two launches move 6, 12 and 24.
//
// Between the two the row is in shared memory: a cluster of CLUSTER blocks shares it out in PARTS chunks of 64 KiB per block (rows
// that are one chunk to a warp: a warp has a row). A thread differentiates the very units that it has read, so no other thread
// touches them; the one that has the label's then puts the label's gradient over what it has written for it. A block writes the
// partials of its chunks into the shared memory of all blocks of its cluster; every thread merges all of them in the order of the
// row, as rows_forward does. Clusters stride over the rows.
//
// One barrier per row. After it all partials are there, and all of the row's logits have been read, the label's as well, which
// is why the gradient may lie over them. Partials, and what lane 0 keeps of a row, have two places that rows take in turns: who
// writes for the next row has passed this one's barrier but not the next one's, which nobody arrives at before he has read what
// was written for this one. For the same reason a block that has passed its last barrier may end: nobody writes to it any more. One
// more barrier at the beginning: nothing may be written to a block that has not begun.
//
// Invariants: those of the two; no reference logits, no top-k statistics; rows of logits and of gradient begin at 16-byte boundaries.
// More compile-time constants: CLUSTER  blocks that share a row; PARTS  chunks of a block

#include "rows_gradient.cuh"
#include "rows_traverse.cuh"
#include "rows_values.cuh"

static_assert(!NEEDS_REFERENCE && !NEEDS_TOPK && UNIT * sizeof(LOGIT) == 16, "rows_forward and rows_backward do these");
static_assert(ROWS_PER_BLOCK == 1 || CLUSTER * PARTS == 1, "a warp's row is one chunk");

// A block's (or warp's) part of the row, [begin, end), in dynamic shared memory, one granule per unit: a sink of traverse().
struct SharedRow {
    uint4* memory;
    i64 begin, end;

    __device__ uint4& at(i64 first) const { return memory[unsigned(first - begin) / UNIT]; }
    template <bool EDGE> __device__ void take(i64 first, const unsigned (&w)[4]) const {
        if (!EDGE || first < end) at(first) = make_uint4(w[0], w[1], w[2], w[3]);
    }
};

struct ToBlock {
    unsigned rank;
    __device__ void operator()(A& to, const A& x) const {
        if (CLUSTER > 1) cluster_store(&to, rank, x);
        else to = x;
    }
};

// The barrier of those who share a row. Warps come to that of a cluster as a whole.
__device__ inline void cluster_barrier() { __syncwarp(), cluster_arrive(), cluster_wait(); }
__device__ inline void barrier() {
    if (CLUSTER > 1) cluster_barrier();
    else if (ROWS_PER_BLOCK == 1) __syncthreads();
    else __syncwarp();
}

// The gradient of a thread's units; FAST: those of whole tiles are read together.
template <bool FAST, typename Factors>
__device__ inline void backward_from_shared(const X& out, const SharedRow& shared_row, int lane, const Factors& s) {
    A values[UNIT];
    i64 first = shared_row.begin + lane * UNIT, whole = first + (shared_row.end - shared_row.begin) / TILE * TILE;
#pragma unroll 1
    for (; FAST && first < whole; first += TILE) {
        uint4 units[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) units[u] = shared_row.at(first + u * STEP);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            unsigned words[] = {units[u].x, units[u].y, units[u].z, units[u].w};
            X::widen(values, words);
            differentiate(values, values, s);
            write_aligned(out, first + u * STEP, values);
        }
    }
#pragma unroll 1
    for (; first < shared_row.end; first += STEP) {
        uint4 v = shared_row.at(first);
        unsigned words[] = {v.x, v.y, v.z, v.w};
        X::widen(values, words);
        differentiate(values, values, s);
        write(out, first, values);
    }
}

// What a group keeps for the second half of its row, in shared memory: the registers are for the loops. Written by lane 0 before the
// row's barrier, read behind it.
struct Kept {
    unsigned turn;
    int place;
    i64 row;
    RowInfo info;
    LOGIT* gradient;
    A logit;
};

// The gradient of the block's part of the row that its group keeps.
__device__ inline void write_gradient(const RowsArgs& a, const SharedRow& shared_row, int lane, const Kept& kept, const Values& v) {
    X out(kept.gradient, a.width, 0);
    Coefficients s = coefficients(a, kept.row, kept.info, {v.of[LOGP], v.of[LSE], v.of[ENTROPY], v.of[REF_LSE], v.of[KL]});
    if (s.filled) {
        for (i64 tile = shared_row.begin; tile < shared_row.end; tile += TILE) fill(out, tile, lane, s.fill);
        return;
    }
    i64 at = kept.info.label - shared_row.begin;
    bool has_label = needs(LOGP) && kept.info.label < shared_row.end && at >= 0 && label_lane(at % CHUNK) == lane;
    A label = has_label ? element_gradient(kept.logit, A(0), true, s) : A(0);
    Folded f = folded(s);
    if (f.moderate) backward_from_shared<true>(out, shared_row, lane, f);
    else backward_from_shared<false>(out, shared_row, lane, s);
    if (has_label) store(kept.gradient + kept.info.label, label);
}

// All moments and top1 together leave too few registers for three blocks of short rows; on sm_120 for three of any, of which shared
// memory holds one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr bool CROWDED = needs(TOP1) && needs(MEAN_LOGIT);
#else
constexpr bool CROWDED = needs(TOP1) && needs(MEAN_LOGIT) && ROWS_PER_BLOCK > 1;
#endif
constexpr int BOTH_BLOCKS = RESIDENT_BLOCKS > 2 && CROWDED ? 2 : RESIDENT_BLOCKS;

extern "C" __global__ void __launch_bounds__(THREADS, BOTH_BLOCKS) rows_both(const RowsArgs a) {
    __shared__ Partial partials[2][CLUSTER * PARTS];
    __shared__ Kept groups[2][ROWS_PER_BLOCK];
    int group = threadIdx.x / ROW_THREADS, lane = threadIdx.x % ROW_THREADS;
    unsigned rank = blockIdx.x % CLUSTER;
    i64 begin = i64(rank) * PARTS * CHUNK, end = begin + PARTS * CHUNK < a.width ? begin + PARTS * CHUNK : a.width;
    SharedRow shared_row = {dynamic_shared() + group * ((a.width + UNIT - 1) / UNIT), begin, end};
    int place = 0;
    if (CLUSTER > 1) cluster_barrier();
    for (unsigned turn = 0;; turn++) {
        i64 row = (i64(turn) * (gridDim.x / CLUSTER) + blockIdx.x / CLUSTER) * ROWS_PER_BLOCK + group;
        if (row >= a.rows) break;
        RowInfo info = row_info(a, row);
        LOGIT* gradient = a.gradient + offset(a, row, a.gradient_stride);
        if (info.ignored || info.invalid) {
            A value = filled_row(info).fill;
            if (rank == 0 && lane == 0) store_values(a, row, value);
            for (i64 tile = begin; tile < end; tile += TILE) fill(X(gradient, a.width, 0), tile, lane, value);
            continue;
        }
        X x(a.logits + offset(a, row, a.logits_stride), a.width, 0);
        A logit = label_logit(x.data, a.width, info);
        Context context = {z_scale(a, info.temperature) * A(LOG2E), softcap_slope(a), a.width, info.label, logit, 0};
        if (lane == 0) groups[place][group] = {turn, place, row, info, gradient, logit};
        Partial p = empty_partial();
        TopK topk = empty_topk();
#pragma unroll 1
        for (int part = 0; part < PARTS && begin + part * CHUNK < end; part++) {
            p = traverse(x, Ref(0, 0, 0), begin + part * CHUNK, lane, context, topk, shared_row);
            merge_group(p, part % 2);
            if (ROWS_PER_BLOCK == 1 && lane < CLUSTER) copy_sums(partials[place][rank * PARTS + part], p, ToBlock{unsigned(lane)});
        }
        barrier();
        Partial total = empty_partial();
        if (ROWS_PER_BLOCK > 1) merge(total, p);
#pragma unroll 2
        for (int chunk = 0; ROWS_PER_BLOCK == 1 && chunk * CHUNK < a.width; chunk++) merge(total, fetched(partials[place][chunk], Here()));
        const Kept& kept = groups[place][group];
        Values v = evaluate(a, kept.info, total, kept.logit, A(0));
        if (rank == 0 && lane == 0) store_values(a, kept.row, v);
        write_gradient(a, shared_row, lane, kept, v);
        turn = kept.turn;
        place = kept.place ^ 1;
    }
}
