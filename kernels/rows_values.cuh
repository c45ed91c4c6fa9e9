// From the sums of a whole row to the values of its statistics, and how both are stored.
//
// Traffic: one number written per row and statistic, by one thread (the top k: one warp); where rows are split over blocks, also
// 12 numbers per chunk, written by rows_forward and read by rows_combine.

#ifndef PREFUSE_ROWS_VALUES_CUH
#define PREFUSE_ROWS_VALUES_CUH

#include "rows.cuh"
#include "topk.cuh"

struct Values { A of[STAT_COUNT]; };  // indexed by constants only, so that it stays in registers

__device__ inline void store_value(const RowsArgs& a, i64 row, int stat, A value) {
    if (needs(stat)) store(a.values + a.slot[stat] * a.rows + row, value);
}
__device__ inline void store_values(const RowsArgs& a, i64 row, A value) {
    for (int stat = 0; stat < STAT_COUNT; stat++) store_value(a, row, stat, value);
}
// All but the top-k ones.
__device__ inline void store_values(const RowsArgs& a, i64 row, const Values& values) {
#pragma unroll
    for (int stat = 0; stat < STAT_COUNT; stat++)
        if (stat != TOPK_MASS && stat != TOPK_ENTROPY) store_value(a, row, stat, values.of[stat]);
}

// t of the label's logit; −inf where the label belongs to another block of the vocabulary, whatever the soft cap would make of that.
__device__ inline A softcapped_label(const RowsArgs& a, const RowInfo& info, A logit) {
    return info.label < a.width ? softcapped(logit, softcap_slope(a)) : -infinity<A>();
}

// Every statistic but the top-k ones. `empty`: nothing but −inf, all p are 0. NaN and +inf logits have made `sum` NaN.
// `logit`, `ref_logit`: the label's.
__device__ inline Values evaluate(const RowsArgs& a, const RowInfo& info, const Partial& p, A logit, A ref_logit) {
    const OnlineSoftmax &x = p.policy, &ref = p.reference;
    A c = z_scale(a, info.temperature) * A(LOG2E), t = softcapped_label(a, info, logit), u = softcapped_label(a, info, ref_logit);
    const A ln2 = A(LN2), log_sum = log2_of(x.sum), ref_log_sum = log2_of(ref.sum);
    const A nan = x.sum - x.sum, ref_nan = ref.sum - ref.sum;  // or 0: added to what could come out finite
    bool empty = x.sum == 0, ref_empty = ref.sum == 0;
    A lse_gap = (x.finite_max() - ref.finite_max()) + (log_sum - ref_log_sum);  // lse − ref_lse, in bits
    A kl = x.cross == infinity<A>() ? x.cross : ln2 * (c * (x.cross / x.sum) - lse_gap);
    A rkl = ref.cross == infinity<A>() ? ref.cross : ln2 * (c * (ref.cross / ref.sum) + lse_gap);
    Values v = {};
    v.of[LOGP] = nan + (t == -infinity<A>() ? t : ln2 * (fma_of(c, t, -x.finite_max()) - log_sum));
    v.of[LSE] = ln2 * (x.finite_max() + log_sum);
    v.of[ENTROPY] = empty ? A(0) : ln2 * (log_sum - x.moment / x.sum);
    v.of[LOG_SUM_SQ] = empty ? -infinity<A>() : ln2 * (log2_of(x.squares) - 2 * log_sum);
    v.of[MEAN_LOGIT] = nan + ln2 * c * (p.logit_sum / A(a.width));
    v.of[TOP1] = nan + (p.outranked > 0 ? A(0) : A(1));
    v.of[REF_LOGP] = ref_nan + (u == -infinity<A>() ? u : ln2 * (fma_of(c, u, -ref.finite_max()) - ref_log_sum));
    v.of[REF_LSE] = ln2 * (ref.finite_max() + ref_log_sum);
    v.of[KL] = nan + ref_nan + (empty ? A(0) : kl);
    v.of[RKL] = nan + ref_nan + (ref_empty ? A(0) : rkl);
    return v;
}

// The two top-k statistics, by the first warp of the group, which holds the list.
__device__ inline void store_topk(const RowsArgs& a, i64 row, const Partial& p, A c, const TopK& topk) {
    int lane = threadIdx.x % 32;
    const OnlineSoftmax& x = p.policy;
    A upper = lane < a.k && x.sum > 0 ? exp2_of(fma_of(c, topk.upper, -x.finite_max())) / x.sum : A(0);
    A lower = lane + 32 < a.k && x.sum > 0 ? exp2_of(fma_of(c, topk.lower, -x.finite_max())) / x.sum : A(0);
    A mass = upper + lower + (x.sum - x.sum);  // NaN where the sum is
    for (int distance = 16; distance; distance /= 2) mass += FromLane{distance}(mass);
    upper /= mass, lower /= mass;
    A entropy = (upper > 0 ? upper * log2_of(upper) : A(0)) + (lower > 0 ? lower * log2_of(lower) : A(0));
    for (int distance = 16; distance; distance /= 2) entropy += FromLane{distance}(entropy);
    if (lane == 0) store_value(a, row, TOPK_MASS, mass), store_value(a, row, TOPK_ENTROPY, (mass - mass) - A(LN2) * entropy);
}

constexpr int PARTIAL_NUMBERS = sizeof(Partial) / sizeof(A);

__device__ inline void store_partial(const RowsArgs& a, i64 item, const Partial& p) {
#pragma unroll
    for (int i = 0; i < PARTIAL_NUMBERS; i++) store((A*)a.partials + item * PARTIAL_NUMBERS + i, ((const A*)&p)[i]);
}
__device__ inline Partial load_partial(const RowsArgs& a, i64 item) {
    Partial p;
#pragma unroll
    for (int i = 0; i < PARTIAL_NUMBERS; i++) ((A*)&p)[i] = load((const A*)a.partials + item * PARTIAL_NUMBERS + i);
    return p;
}

#endif
