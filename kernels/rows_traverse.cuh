// One pass over a chunk of a row by the threads that share it: what rows_forward and rows_both do with logits.
//
// Traffic: each logit is loaded once. A thread takes a unit of 16 bytes, then the one STEP elements further on; the UNROLL units of a
// tile are in flight before the first is used. Of a tile that the row does not fill, what is missing is −inf.
//
// What is tested is tested per tile or per unit, not per element: the maximum grows, the label may be outranked, a sum has become NaN (of
// 0·inf, where a logit is −inf: those units are added up again with care).
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

// x, but at least 0 and at most `most`.
__device__ inline i64 within(i64 x, i64 most) { return x < 0 ? 0 : x < most ? x : most; }

// Raw logits as t; what is outside of the row (EDGE) is −inf, whatever the soft cap would make of that.
template <bool EDGE> __device__ inline void softcap_unit(A (&t)[UNIT], int left, const Context& s) {
#pragma unroll
    for (int i = 0; i < UNIT; i++)
        if (SOFTCAP) t[i] = !EDGE || i < left ? softcapped(t[i], s.softcap_slope) : -infinity<A>();
}

// Whether an element of the tile comes before the label in the order of argmax; `largest` is its largest, `label` the label's.
__device__ inline bool outranks(const unsigned (&words)[UNROLL][X::WORDS], A largest, A label, i64 first, const Context& s) {
    if (largest > label) return true;
    const int before = int(within(s.label - first, TILE));  // elements before the label
    bool equal = false;
    A x[UNIT];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        X::widen(x, words[u]);
#pragma unroll
        for (int i = 0; i < UNIT; i++) equal = equal || (x[i] == label && u * int(STEP) + i < before);
    }
    return equal;
}

// What one unit adds to the sums that multiply by logits, with 0·inf = 0.
__device__ inline void add_with_care(OnlineSoftmax& unit, const A (&t)[UNIT], const A (&other)[UNIT], A c, A finite_max) {
    unit.moment = 0, unit.cross = 0;
#pragma unroll
    for (int i = 0; i < UNIT; i++) {
        A d = fma_of(c, t[i], -finite_max), e = exp2_of(d);
        unit.moment = fma_of(e, max_of(d, lowest<A>()), unit.moment);
        if (NEEDS_REFERENCE && e > 0) unit.cross = fma_of(e, t[i] - other[i], unit.cross);
    }
}

// What one unit adds to the sums of its logits; MOMENTS, CROSS: which of them are needed.
template <bool MOMENT, bool SQUARES, bool CROSS>
__device__ inline void add_unit(OnlineSoftmax& p, const A (&t)[UNIT], const A (&other)[UNIT], A c, A finite_max) {
    constexpr bool FEW_SUMS = !MOMENT && !SQUARES && !CROSS && !NEEDS_REFERENCE && !NEEDS_TOPK;
    OnlineSoftmax unit = {0, 0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < UNIT; i++) {
        A d = fma_of(c, t[i], -finite_max), e = exp2_of_unit<FEW_SUMS>(i, d);
        unit.sum += e;
        if (MOMENT) unit.moment = fma_of(e, d, unit.moment);
        if (SQUARES) p.squares = fma_of(e, e, p.squares);
        if (CROSS) unit.cross = fma_of(e, t[i] - other[i], unit.cross);
    }
    if ((MOMENT && unit.moment != unit.moment) || (CROSS && unit.cross != unit.cross)) add_with_care(unit, t, other, c, finite_max);
    p.sum += unit.sum;
    if (MOMENT) p.moment += unit.moment;
    if (CROSS) p.cross += unit.cross;
}

// Adds the tile of a thread, whose first element is `first`; EDGE: it may leave the row, and what does is −inf.
template <bool EDGE>
__device__ inline void accumulate(Partial& p, A& to_reach, TopK& topk, const unsigned (&words)[UNROLL][X::WORDS],
                                  const unsigned (&ref_words)[UNROLL][Ref::WORDS], i64 first, const Context& s) {
    A largest = largest_of<UNROLL * X::WORDS>(words[0], LOGIT());
    if (needs(TOP1) && largest >= to_reach && outranks(words, largest, to_reach, first, s)) to_reach = infinity<A>();
    p.policy.rescale(s.c * softcapped(largest, s.softcap_slope));
    if (NEEDS_REFERENCE)
        p.reference.rescale(s.c * softcapped(largest_of<UNROLL * Ref::WORDS>(ref_words[0], REFERENCE()), s.softcap_slope));
    const int left = EDGE ? int(within(s.width - first, TILE)) : 0;  // elements of the row from `first` on, as far as they matter
    A finite_max = p.policy.finite_max(), ref_finite_max = p.reference.finite_max();
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        A t[UNIT], ref[UNIT];
        X::widen(t, words[u]);
        softcap_unit<EDGE>(t, left - u * int(STEP), s);
        if (NEEDS_REFERENCE) {
            Ref::widen(ref, ref_words[u]);
            softcap_unit<EDGE>(ref, left - u * int(STEP), s);
            add_unit<false, false, needs(RKL)>(p.reference, ref, t, s.c, ref_finite_max);
        }
        add_unit<needs(ENTROPY), needs(LOG_SUM_SQ), needs(KL)>(p.policy, t, ref, s.c, finite_max);
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            if (needs(MEAN_LOGIT) && (!EDGE || u * int(STEP) + i < left)) p.logit_sum += t[i];
            if (NEEDS_TOPK) topk.push(t[i], s.k);
        }
    }
}

// Does nothing with the units that have been read; rows_both has a sink that keeps them in shared memory.
struct NoSink {
    template <bool EDGE> __device__ void take(i64, const unsigned (&)[X::WORDS]) const {}
};

// One chunk of a row by `lane` of its group; `sink` gets the policy's units, in words; EDGE: they may leave the row.
template <typename Sink>
__device__ inline Partial traverse(const X& x, const Ref& ref, i64 begin, int lane, const Context& s, TopK& topk, Sink sink) {
    Partial p = empty_partial();
    A to_reach = s.label_logit;  // what could outrank the label; +inf once something has
    unsigned words[UNROLL][X::WORDS], ref_words[UNROLL][Ref::WORDS];
    i64 end = begin + CHUNK < s.width ? begin + CHUNK : s.width, first = begin + lane * UNIT;
    const bool aligned = x.skew == 0 && (!NEEDS_REFERENCE || ref.skew == 0);
    i64 whole = aligned ? begin + int(end - begin) / int(TILE) * int(TILE) + lane * UNIT : first;  // behind the tiles that the row fills
#pragma unroll 1
    for (; first < whole; first += TILE) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            x.fetch(words[u], first + u * STEP);
            if (NEEDS_REFERENCE) ref.fetch(ref_words[u], first + u * STEP);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) sink.template take<false>(first + u * STEP, words[u]);
        accumulate<false>(p, to_reach, topk, words, ref_words, first, s);
    }
#pragma unroll 1
    for (; first - lane * UNIT < end; first += TILE) {
        x.fetch_any(words, first, STEP, -infinity<A>());
        if (NEEDS_REFERENCE) ref.fetch_any(ref_words, first, STEP, -infinity<A>());
#pragma unroll
        for (int u = 0; u < UNROLL; u++) sink.template take<true>(first + u * STEP, words[u]);
        accumulate<true>(p, to_reach, topk, words, ref_words, first, s);
    }
    if (needs(TOP1)) p.outranked = to_reach == infinity<A>() ? 1 : 0;
    return p;
}

// The partials of a group's threads in one, in all lanes of its first warp. `buffer`, 0 or 1, alternates from call to call (or
// a barrier is between two), so that one barrier suffices here.
__device__ inline void merge_group(Partial& p, int buffer) {
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
}

#endif
