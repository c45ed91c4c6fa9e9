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

// What the threads of a group know of their row.
struct Context {
    A c, bend;
    i64 width, label;
    A label_logit;
    int k;
};

// One unit: elements [first, first + UNIT) of the row; at its edges only those inside the row count.
template <bool EDGE>
__device__ inline void absorb(Partial& p, Top& top, const A (&x)[UNIT], const A (&ref)[UNIT], i64 first, const Context& s) {
    A t[UNIT], u[UNIT], largest = -infinity<A>(), ref_largest = -infinity<A>();
#pragma unroll
    for (int i = 0; i < UNIT; i++) {
        bool live = !EDGE || first + i < s.width;
        t[i] = live ? bent(x[i], s.bend) : -infinity<A>();
        largest = max_of(largest, t[i]);
        if (WANTS_REFERENCE) u[i] = live ? bent(ref[i], s.bend) : -infinity<A>();
        if (WANTS_REFERENCE) ref_largest = max_of(ref_largest, u[i]);
        if (wants(MEAN_LOGIT) && live) p.total += t[i];
        if (wants(TOP1) && live && (x[i] > s.label_logit || (x[i] == s.label_logit && first + i < s.label))) p.beaten = 1;
    }
    p.policy.raise(s.c * largest);
    if (WANTS_REFERENCE) p.reference.raise(s.c * ref_largest);
    A base = p.policy.base(), ref_base = p.reference.base(), sum = 0, ref_sum = 0;
#pragma unroll
    for (int i = 0; i < UNIT; i++) {
        A d = fma_of(s.c, t[i], -base), e = exp2_of(d);
        sum += e;
        if (wants(ENTROPY)) p.policy.moment = fma_of(e, max_of(d, lowest<A>()), p.policy.moment);  // −inf·0 is 0
        if (wants(LOG_SUM_SQ)) p.policy.squares = fma_of(e, e, p.policy.squares);
        if (wants(KL) && e > 0) p.policy.cross = fma_of(e, t[i] - u[i], p.policy.cross);
        if (WANTS_REFERENCE) {
            A q = exp2_of(fma_of(s.c, u[i], -ref_base));
            ref_sum += q;
            if (wants(RKL) && q > 0) p.reference.cross = fma_of(q, u[i] - t[i], p.reference.cross);
        }
        if (WANTS_TOPK) top.consider(t[i], s.k);
    }
    p.policy.sum += sum, p.reference.sum += ref_sum;
}

// One chunk of a row by `lane` of its group.
__device__ inline Partial traverse(const X& x, const Ref& ref, i64 begin, int lane, const Context& s,
                                   Top& top) {
    Partial p = nothing();
    A logits[UNIT], others[UNIT];
    i64 end = begin + CHUNK < s.width ? begin + CHUNK : s.width;
#pragma unroll 1
    for (i64 tile = begin; tile < end; tile += TILE) {
        i64 first = tile + lane * UNIT;
        if (x.aligned(tile, tile + TILE) && (!WANTS_REFERENCE || ref.aligned(tile, tile + TILE))) {
            unsigned words[UNROLL][X::WORDS], ref_words[UNROLL][Ref::WORDS];
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                x.fetch(words[u], first + u * STEP);
                if (WANTS_REFERENCE) ref.fetch(ref_words[u], first + u * STEP);
            }
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                X::widen(logits, words[u]);
                if (WANTS_REFERENCE) Ref::widen(others, ref_words[u]);
                absorb<false>(p, top, logits, others, first + u * STEP, s);
            }
        } else {
#pragma unroll 1
            for (int u = 0; u < UNROLL; u++) {
                x.read(logits, first + u * STEP);
                if (WANTS_REFERENCE) ref.read(others, first + u * STEP);
                absorb<true>(p, top, logits, others, first + u * STEP, s);
            }
        }
    }
    return p;
}

// The partials of a group's threads in one, in all lanes of its first warp. `turn` alternates between two buffers, so that
// one barrier suffices.
__device__ inline void merge_group(Partial& p, int& turn) {
    merge_warp(p);
    if (GROUPS > 1) return;
    __shared__ Partial warps[2][THREADS / 32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) warps[turn][warp] = p;
    __syncthreads();
    if (warp == 0) {
        p = lane < THREADS / 32 ? warps[turn][lane] : nothing();
        merge_warp(p);
    }
    turn ^= 1;
}

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
            Partial p = traverse(x, ref, chunk, lane, s, top);
            merge_group(p, turn);
            merge(total, p);
        }
        if (WANTS_TOPK && GROUPS == 1) merge_block(top, s.k);
        if (a.parts > 1 && lane == 0) keep(a, item, total);
        if (a.parts > 1 || lane >= 32) continue;
        if (WANTS_TOPK) finish_topk(a, row, total, s.c, top);
        if (lane == 0) finish(a, row, h, total, logit, ref_logit);
    }
}
