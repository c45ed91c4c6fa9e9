// One pass over a chunk of a row by the threads that share it: what rows_forward and rows_both do with logits.
//
// Traffic: each logit is loaded once. A thread takes a unit of 16 bytes, then the one STEP elements further on; UNROLL units are in
// flight before the first is used. Tiles (UNROLL · STEP elements) that the row does not fill, or that are off a 16-byte boundary, go
// unit by unit.
//
// A thread has its own Partial throughout the chunk; merge_group() joins those of a warp by shuffles, then those of the block's
// warps through shared memory.

#ifndef PREFUSE_ROWS_TRAVERSE_CUH
#define PREFUSE_ROWS_TRAVERSE_CUH

#include "rows.cuh"
#include "topk.cuh"

// What stays the same for all units of a row.
struct Context {
    A c, softcap_slope;
    i64 width, label;
    A label_logit;
    int k;
};

// Adds one unit, elements [first, first + UNIT) of the row; EDGE: it may leave the row, and only what is inside counts.
template <bool EDGE>
__device__ inline void accumulate(Partial& p, TopK& topk, const A (&x)[UNIT], const A (&ref)[UNIT], i64 first, const Context& s) {
    A t[UNIT], u[UNIT], largest = -infinity<A>(), ref_largest = -infinity<A>();
#pragma unroll
    for (int i = 0; i < UNIT; i++) {
        bool live = !EDGE || first + i < s.width;
        t[i] = live ? softcapped(x[i], s.softcap_slope) : -infinity<A>();
        largest = max_of(largest, t[i]);
        if (NEEDS_REFERENCE) u[i] = live ? softcapped(ref[i], s.softcap_slope) : -infinity<A>();
        if (NEEDS_REFERENCE) ref_largest = max_of(ref_largest, u[i]);
        if (needs(MEAN_LOGIT) && live) p.logit_sum += t[i];
        if (needs(TOP1) && live && (x[i] > s.label_logit || (x[i] == s.label_logit && first + i < s.label))) p.outranked = 1;
    }
    p.policy.rescale(s.c * largest);
    if (NEEDS_REFERENCE) p.reference.rescale(s.c * ref_largest);
    A finite_max = p.policy.finite_max(), ref_finite_max = p.reference.finite_max(), sum = 0, ref_sum = 0;
#pragma unroll
    for (int i = 0; i < UNIT; i++) {
        A d = fma_of(s.c, t[i], -finite_max), e = exp2_of(d);
        sum += e;
        if (needs(ENTROPY)) p.policy.moment = fma_of(e, max_of(d, lowest<A>()), p.policy.moment);  // −inf·0 is 0
        if (needs(LOG_SUM_SQ)) p.policy.squares = fma_of(e, e, p.policy.squares);
        if (needs(KL) && e > 0) p.policy.cross = fma_of(e, t[i] - u[i], p.policy.cross);
        if (NEEDS_REFERENCE) {
            A q = exp2_of(fma_of(s.c, u[i], -ref_finite_max));
            ref_sum += q;
            if (needs(RKL) && q > 0) p.reference.cross = fma_of(q, u[i] - t[i], p.reference.cross);
        }
        if (NEEDS_TOPK) topk.push(t[i], s.k);
    }
    p.policy.sum += sum, p.reference.sum += ref_sum;
}

// Does nothing with the units that have been read; rows_both has a sink that keeps them in shared memory.
struct NoSink {
    template <typename Unit> __device__ void operator()(i64, const Unit&) const {}
};

// One chunk of a row by `lane` of its group; `sink` gets the policy's units, in words or (at edges) in numbers.
template <typename Sink>
__device__ inline Partial traverse(const X& x, const Ref& ref, i64 begin, int lane, const Context& s, TopK& topk, Sink sink) {
    Partial p = empty_partial();
    A logits[UNIT], ref_logits[UNIT];
    i64 end = begin + CHUNK < s.width ? begin + CHUNK : s.width;
#pragma unroll 1
    for (i64 tile = begin; tile < end; tile += TILE) {
        i64 first = tile + lane * UNIT;
        if (x.aligned(tile, tile + TILE) && (!NEEDS_REFERENCE || ref.aligned(tile, tile + TILE))) {
            unsigned words[UNROLL][X::WORDS], ref_words[UNROLL][Ref::WORDS];
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                x.fetch(words[u], first + u * STEP);
                if (NEEDS_REFERENCE) ref.fetch(ref_words[u], first + u * STEP);
            }
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                sink(first + u * STEP, words[u]);
                X::widen(logits, words[u]);
                if (NEEDS_REFERENCE) Ref::widen(ref_logits, ref_words[u]);
                accumulate<false>(p, topk, logits, ref_logits, first + u * STEP, s);
            }
        } else {
#pragma unroll 1
            for (int u = 0; u < UNROLL; u++) {
                x.read(logits, first + u * STEP);
                sink(first + u * STEP, logits);
                if (NEEDS_REFERENCE) ref.read(ref_logits, first + u * STEP);
                accumulate<true>(p, topk, logits, ref_logits, first + u * STEP, s);
            }
        }
    }
    return p;
}

// The partials of a group's threads in one, in all lanes of its first warp. `buffer`, 0 or 1, alternates from call to call, so that
// one barrier suffices.
__device__ inline void merge_group(Partial& p, int& buffer) {
    merge_warp(p);
    if (ROWS_PER_BLOCK > 1) return;
    __shared__ Partial warps[2][THREADS / 32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) warps[buffer][warp] = p;
    __syncthreads();
    if (warp == 0) {
        p = lane < THREADS / 32 ? warps[buffer][lane] : empty_partial();
        merge_warp(p);
    }
    buffer ^= 1;
}

#endif
