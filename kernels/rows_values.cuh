// From what a traversal remembers to the values of the statistics, and the partials of rows that are split over blocks.

#ifndef PREFUSE_ROWS_VALUES_CUH
#define PREFUSE_ROWS_VALUES_CUH

#include "rows.cuh"
#include "topk.cuh"

struct Values { A of[STAT_COUNT]; };  // indexed by constants only, so that it stays in registers

__device__ inline void put(const RowsArgs& a, i64 row, int stat, A value) {
    if (wants(stat)) store(a.values + a.slot[stat] * a.rows + row, value);
}
__device__ inline void put_all(const RowsArgs& a, i64 row, A value) {
    for (int stat = 0; stat < STAT_COUNT; stat++) put(a, row, stat, value);
}
// All but the top-k ones.
__device__ inline void put_all(const RowsArgs& a, i64 row, const Values& values) {
#pragma unroll
    for (int stat = 0; stat < STAT_COUNT; stat++)
        if (stat != TOPK_MASS && stat != TOPK_ENTROPY) put(a, row, stat, values.of[stat]);
}

// t of the label's logit; of a label in another block −inf, whatever the soft cap would make of that.
__device__ inline A label_t(const RowsArgs& a, const Header& h, A logit) {
    return h.label < a.width ? bent(logit, bend(a)) : -infinity<A>();
}

// Every statistic but the top-k ones. `empty`: nothing but −inf, all p are 0. NaN and +inf logits have made `sum` NaN.
// `logit`, `ref_logit`: the label's.
__device__ inline Values evaluate(const RowsArgs& a, const Header& h, const Partial& p, A logit, A ref_logit) {
    const Softmax &x = p.policy, &ref = p.reference;
    A c = slope(a, h.temperature) * A(LOG2E), t = label_t(a, h, logit), u = label_t(a, h, ref_logit);
    const A ln2 = A(LN2), log_sum = log2_of(x.sum), ref_log_sum = log2_of(ref.sum);
    const A nan = x.sum - x.sum, ref_nan = ref.sum - ref.sum;  // or 0: added to what could come out finite
    bool empty = x.sum == 0, ref_empty = ref.sum == 0;
    A apart = (x.base() - ref.base()) + (log_sum - ref_log_sum);  // lse − ref_lse, in bits
    A kl = x.cross == infinity<A>() ? x.cross : ln2 * (c * (x.cross / x.sum) - apart);
    A rkl = ref.cross == infinity<A>() ? ref.cross : ln2 * (c * (ref.cross / ref.sum) + apart);
    Values v = {};
    v.of[LOGP] = nan + (t == -infinity<A>() ? t : ln2 * (fma_of(c, t, -x.base()) - log_sum));
    v.of[LSE] = ln2 * (x.base() + log_sum);
    v.of[ENTROPY] = empty ? A(0) : ln2 * (log_sum - x.moment / x.sum);
    v.of[LOG_SUM_SQ] = empty ? -infinity<A>() : ln2 * (log2_of(x.squares) - 2 * log_sum);
    v.of[MEAN_LOGIT] = nan + ln2 * c * (p.total / A(a.width));
    v.of[TOP1] = nan + (p.beaten > 0 ? A(0) : A(1));
    v.of[REF_LOGP] = ref_nan + (u == -infinity<A>() ? u : ln2 * (fma_of(c, u, -ref.base()) - ref_log_sum));
    v.of[REF_LSE] = ln2 * (ref.base() + ref_log_sum);
    v.of[KL] = nan + ref_nan + (empty ? A(0) : kl);
    v.of[RKL] = nan + ref_nan + (ref_empty ? A(0) : rkl);
    return v;
}

// By the first warp of the group, which holds the list.
__device__ inline void finish_topk(const RowsArgs& a, i64 row, const Partial& p, A c, const Top& top) {
    int lane = threadIdx.x % 32;
    const Softmax& x = p.policy;
    A upper = lane < a.k && x.sum > 0 ? exp2_of(fma_of(c, top.upper, -x.base())) / x.sum : A(0);
    A lower = lane + 32 < a.k && x.sum > 0 ? exp2_of(fma_of(c, top.lower, -x.base())) / x.sum : A(0);
    A mass = upper + lower + (x.sum - x.sum);  // NaN where the sum is
    for (int distance = 16; distance; distance /= 2) mass += Across{distance}(mass);
    upper /= mass, lower /= mass;
    A entropy = (upper > 0 ? upper * log2_of(upper) : A(0)) + (lower > 0 ? lower * log2_of(lower) : A(0));
    for (int distance = 16; distance; distance /= 2) entropy += Across{distance}(entropy);
    if (lane == 0) put(a, row, TOPK_MASS, mass), put(a, row, TOPK_ENTROPY, (mass - mass) - A(LN2) * entropy);
}

constexpr int PARTIAL_NUMBERS = sizeof(Partial) / sizeof(A);

__device__ inline void keep(const RowsArgs& a, i64 item, const Partial& p) {
#pragma unroll
    for (int i = 0; i < PARTIAL_NUMBERS; i++) store((A*)a.partials + item * PARTIAL_NUMBERS + i, ((const A*)&p)[i]);
}
__device__ inline Partial kept(const RowsArgs& a, i64 item) {
    Partial p;
#pragma unroll
    for (int i = 0; i < PARTIAL_NUMBERS; i++) ((A*)&p)[i] = load((const A*)a.partials + item * PARTIAL_NUMBERS + i);
    return p;
}

#endif
