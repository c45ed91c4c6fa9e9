// Token statistics of N rows of V logits: log-probability of the label, log-sum-exp, entropy, …, all from one pass.
//
//   sum = Σ 2^(c·t − max),  lse = ln2·(max + log2 sum),  logp = ln2·(c·t_y − max − log2 sum)
//   entropy = ln2·(log2 sum − moment/sum),  log_sum_sq = log squares − 2 log sum
//   kl = ln2·(c·cross/sum) − lse + ref_lse
//
// Traffic: each logit is read once (with a reference, each of its logits too); one number is written per row and statistic.
//
// A row is cut into chunks of fixed length. The threads of a group (a block, or a warp for short rows) read a chunk, each its own
// units of 16 bytes, four in flight; a thread rescales its sums only when its maximum grew. Chunks are merged in order. So a row
// gives the same bits whether one block walks through its chunks (many rows: an item is a row) or each chunk has a block of its own
// and rows_combine merges them (few rows: an item is a chunk). Blocks stride over the items.
//
// Invariants: an ignored row is not read; its values are 0. A label outside [0, classes) makes the values of its row NaN; one
// that is a class of another block has no mass in this one: logp −inf, top1 0.
// −inf logits have p = 0 and take no part; NaN and +inf make every value of these logits NaN.

#include "rows_traverse.cuh"
#include "rows_values.cuh"

// What lane 0 of a group keeps for the end of its item, in shared memory: the registers are for the loop.
struct Kept {
    i64 item, row;
    RowInfo info;
    A logit, ref_logit;
    Partial total;
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS) rows_forward(const RowsArgs a) {
    __shared__ Kept groups[ROWS_PER_BLOCK];
    int group = threadIdx.x / ROW_THREADS, lane = threadIdx.x % ROW_THREADS, buffer = 0;
    Kept& kept = groups[group];
    for (unsigned turn = 0;; turn++) {
        i64 item = (i64(turn) * gridDim.x + blockIdx.x) * ROWS_PER_BLOCK + group;
        if (item >= a.rows * a.parts) break;
        i64 row = item / a.parts, part = item % a.parts;
        RowInfo info = row_info(a, row);
        if (info.ignored || info.invalid) {
            if (lane == 0 && part == 0) store_values(a, row, info.ignored ? A(0) : not_a_number<A>());
            continue;
        }
        X x(a.logits + offset(a, row, a.logits_stride), a.width, 0);
        Ref ref(NEEDS_REFERENCE ? a.reference + offset(a, row, a.reference_stride) : 0, a.width, 0);
        A logit = label_logit(x.data, a.width, info), ref_logit = NEEDS_REFERENCE ? label_logit(ref.data, a.width, info) : A(0);
        Context s = {z_scale(a, info.temperature) * A(LOG2E), softcap_slope(a), a.width, info.label, logit, int(a.k)};
        TopK topk = empty_topk();
        if (lane == 0) kept = {item, row, info, logit, ref_logit, empty_partial()};
        i64 end = a.parts == 1 ? a.width : (part + 1) * CHUNK;
        for (i64 chunk = part * CHUNK; chunk < end; chunk += CHUNK) {
            Partial p = traverse(x, ref, chunk, lane, s, topk, NoSink());
            merge_group(p, buffer);
            buffer ^= 1;
            if (lane == 0) merge(kept.total, p);
        }
        if (NEEDS_TOPK && ROWS_PER_BLOCK == 1) merge_topk(topk, s.k);
        if (lane >= 32) continue;
        __syncwarp();
        if (NEEDS_TOPK && a.parts == 1) store_topk(a, kept.row, kept.total, s.c, topk);
        if (lane == 0 && a.parts > 1) store_partial(a, kept.item, kept.total);
        if (lane == 0 && a.parts == 1) store_values(a, kept.row, evaluate(a, kept.info, kept.total, kept.logit, kept.ref_logit));
        __syncwarp();
    }
}
