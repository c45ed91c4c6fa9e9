// Token statistics of N rows of V logits: log-probability of the label, log-sum-exp, entropy, …, all from one traversal.
//
//   sum = Σ 2^(c·t − peak),  lse = ln2·(peak + log2 sum),  logp = ln2·(c·t_y − peak − log2 sum)
//   entropy = ln2·(log2 sum − moment/sum),  log_sum_sq = log squares − 2 log sum
//   kl = ln2·(c·cross/sum) − lse + ref_lse
//
// Traffic: each logit is read once (with a reference, each of its logits too); one number is written per row and statistic.
//
// A row is cut into chunks of fixed length. The threads of a group read a chunk, each its own units, in units of 16 bytes,
// four in flight; every thread rescales only when its maximum grew. Chunks are merged in order. So a row gives the same bits
// whether one block walks through its chunks (many rows) or each chunk has a block of its own and rows_combine merges
// them (few rows).
//
// Invariants: an ignored row is not read; its values are 0. A label outside [0, classes) makes the values of its row NaN; one
// that is a class of another block has no mass in this one: logp −inf, top1 0.
// −inf logits have p = 0 and take no part; NaN and +inf make every value of these logits NaN.

#include "rows_traverse.cuh"
#include "rows_values.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) rows_forward(const RowsArgs a) {
    int group = threadIdx.x / ROW_THREADS, lane = threadIdx.x % ROW_THREADS, turn = 0;
    for (i64 item = i64(blockIdx.x) * GROUPS + group; item < a.rows * a.parts; item += i64(gridDim.x) * GROUPS) {
        i64 row = item / a.parts, part = item % a.parts;
        Header h = header(a, row);
        if (h.ignored || h.broken) {
            if (lane == 0 && part == 0) put_all(a, row, h.ignored ? A(0) : not_a_number<A>());
            continue;
        }
        X x(a.logits + offset(a, row, a.logits_stride), a.width, 0);
        Ref ref(WANTS_REFERENCE ? a.reference + offset(a, row, a.reference_stride) : 0, a.width, 0);
        A logit = label_logit(x.data, a.width, h), ref_logit = WANTS_REFERENCE ? label_logit(ref.data, a.width, h) : A(0);
        Context s = {slope(a, h.temperature) * A(LOG2E), bend(a), a.width, h.label, logit, int(a.k)};
        Top top = empty_top();
        Partial total = nothing();
        i64 end = a.parts == 1 ? a.width : (part + 1) * CHUNK;
        for (i64 chunk = part * CHUNK; chunk < end; chunk += CHUNK) {
            Partial p = traverse(x, ref, chunk, lane, s, top, Forget());
            merge_group(p, turn);
            merge(total, p);
        }
        if (WANTS_TOPK && GROUPS == 1) merge_block(top, s.k);
        if (a.parts > 1 && lane == 0) keep(a, item, total);
        if (a.parts > 1 || lane >= 32) continue;
        if (WANTS_TOPK) finish_topk(a, row, total, s.c, top);
        if (lane == 0) put_all(a, row, evaluate(a, h, total, logit, ref_logit));
    }
}
