// Statistics and gradient of N rows of V logits in one visit, for upstream gradients that are known beforehand: what rows_forward
// and then rows_backward compute (the formulas are there), to the bit.
//
// Traffic: each logit is read once and its gradient written once, over the logits themselves if asked: 4 bytes per 16-bit logit,
// 8 per f32, 16 per f64; the two launches move 6, 12 and 24.
//
// Between the two the row is in shared memory: a cluster of CLUSTER blocks shares it out in PARTS chunks of 64 KiB per block (rows
// that are one chunk to a warp: a warp has a row). A thread differentiates the very units that it has read, so no other thread
// touches them. Blocks exchange the partials of their chunks through distributed shared memory: every thread merges all of them in
// the order of the row, as rows_forward does. Clusters stride over the rows.
//
// Two barriers per row. After the first all partials can be read, and all of the row's logits have been, the label's as well, which
// is why the gradient may lie over them. The second keeps partials until everybody has read them: a block neither writes
// those of its next row nor ends before; it is waited for after the gradient has been written.
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
    __device__ void operator()(i64 first, const unsigned (&w)[4]) const { at(first) = make_uint4(w[0], w[1], w[2], w[3]); }
    __device__ void operator()(i64 first, const A (&x)[UNIT]) const {
        unsigned words[4];
        pack<UNIT>(words, x, LOGIT());
        if (first < end) (*this)(first, words);
    }
};

struct FromBlock {
    unsigned rank;
    __device__ A operator()(const A& x) const { return CLUSTER > 1 ? cluster_load(&x, rank) : x; }
};

// The barrier of those who share a row. Without a cluster it is one step, taken in wait().
__device__ inline void arrive() {
    if (CLUSTER > 1) cluster_arrive();
}
__device__ inline void wait() {
    if (CLUSTER > 1) cluster_wait();
    else if (ROWS_PER_BLOCK == 1) __syncthreads();
    else __syncwarp();
}

__device__ inline void backward_from_shared(const X& out, const SharedRow& shared_row, int lane, const Coefficients& s) {
    A values[UNIT];
#pragma unroll 1
    for (i64 first = shared_row.begin + lane * UNIT; first < shared_row.end; first += STEP) {
        uint4 v = shared_row.at(first);
        unsigned words[] = {v.x, v.y, v.z, v.w};
        X::widen(values, words);
        differentiate(values, values, first, s);
        write(out, first, values);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS) rows_both(const RowsArgs a) {
    __shared__ Partial partials[PARTS];
    int group = threadIdx.x / ROW_THREADS, lane = threadIdx.x % ROW_THREADS, buffer = 0;
    unsigned rank = blockIdx.x % CLUSTER;
    i64 begin = i64(rank) * PARTS * CHUNK, end = begin + PARTS * CHUNK < a.width ? begin + PARTS * CHUNK : a.width;
    SharedRow shared_row = {dynamic_shared() + group * ((a.width + UNIT - 1) / UNIT), begin, end};
    for (i64 row = i64(blockIdx.x / CLUSTER) * ROWS_PER_BLOCK + group; row < a.rows; row += i64(gridDim.x / CLUSTER) * ROWS_PER_BLOCK) {
        RowInfo info = row_info(a, row);
        X x(a.logits + offset(a, row, a.logits_stride), a.width, 0), out(a.gradient + offset(a, row, a.gradient_stride), a.width, 0);
        Coefficients s = filled_row(info);
        if (info.ignored || info.invalid) {
            if (rank == 0 && lane == 0) store_values(a, row, s.fill);
        } else {
            A logit = label_logit(x.data, a.width, info);
            Context context = {z_scale(a, info.temperature) * A(LOG2E), softcap_slope(a), a.width, info.label, logit, 0};
            Partial p = empty_partial(), total = empty_partial();
            TopK topk = empty_topk();
#pragma unroll 1
            for (int part = 0; part < PARTS && begin + part * CHUNK < end; part++) {
                p = traverse(x, Ref(0, 0, 0), begin + part * CHUNK, lane, context, topk, shared_row);
                merge_group(p, buffer);
                if (ROWS_PER_BLOCK == 1 && lane == 0) partials[part] = p;
            }
            arrive(), wait();
            if (ROWS_PER_BLOCK > 1) merge(total, p);
#pragma unroll 1
            for (int chunk = 0; ROWS_PER_BLOCK == 1 && chunk * CHUNK < a.width; chunk++)
                merge(total, fetched(partials[chunk % PARTS], FromBlock{unsigned(chunk / PARTS)}));
            arrive();
            Values v = evaluate(a, info, total, logit, A(0));
            if (rank == 0 && lane == 0) store_values(a, row, v);
            s = coefficients(a, row, info, {v.of[LOGP], v.of[LSE], v.of[ENTROPY], v.of[REF_LSE], v.of[KL]});
        }
        if (s.filled)
            for (i64 tile = begin; tile < end; tile += TILE) fill(out, tile, lane, s.fill);
        else backward_from_shared(out, shared_row, lane, s);
        if (!info.ignored && !info.invalid) wait();
    }
}
