// One traversal of a chunk of a row by the threads that share it: what rows_forward and rows_both do with logits.

#ifndef PREFUSE_ROWS_TRAVERSE_CUH
#define PREFUSE_ROWS_TRAVERSE_CUH

#include "rows.cuh"
#include "topk.cuh"

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

// What becomes of units that have been read: nothing.
struct Forget {
    template <typename Unit> __device__ void operator()(i64, const Unit&) const {}
};

// One chunk of a row by `lane` of its group; `keep` gets the policy's units, in words or (at edges) in numbers.
template <typename Keep>
__device__ inline Partial traverse(const X& x, const Ref& ref, i64 begin, int lane, const Context& s, Top& top, Keep keep) {
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
                keep(first + u * STEP, words[u]);
                X::widen(logits, words[u]);
                if (WANTS_REFERENCE) Ref::widen(others, ref_words[u]);
                absorb<false>(p, top, logits, others, first + u * STEP, s);
            }
        } else {
#pragma unroll 1
            for (int u = 0; u < UNROLL; u++) {
                x.read(logits, first + u * STEP);
                keep(first + u * STEP, logits);
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

#endif
