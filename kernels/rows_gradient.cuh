// The gradient of a row, element by element, in the registers of the thread that holds the logits; rows_backward.cu has the formula.
// Used by rows_backward, which loads logits and saved statistics, and by rows_both, which has both at hand.
//
// Traffic: per row the upstream gradients, one number each. Nothing per element: differentiate() turns logits into their gradient in
// place. fill() writes one number over a tile of a row that needs no logits.

#ifndef PREFUSE_ROWS_GRADIENT_CUH
#define PREFUSE_ROWS_GRADIENT_CUH

#include "rows.cuh"

struct Coefficients {
    A w, g_logp, g_entropy, g_kl, g_rkl;   // upstream gradients
    A logp, lse, entropy, ref_lse, kl;     // saved by forward
    A label_gradient;                      // g_logp·(p_y − 1)
    A mean_gradient;                       // of the mean logit, the same for every element
    A z_scale, softcap_slope;              // z = z_scale·t,  t = tanh(softcap_slope·x) or x
    A dz;                                  // dz/dx, but for the factor 1 − t² of the soft cap
    i64 label;
    bool filled;                           // the whole row becomes `fill`, its logits unread
    A fill;
};

// The statistics of a row that its gradient is computed from.
struct Saved { A logp, lse, entropy, ref_lse, kl; };

__device__ inline A load_statistic(const RowsArgs& a, const A* table, i64 row, int stat) {
    return needs(stat) ? load(table + a.slot[stat] * a.rows + row) : A(0);
}

// For a row that is ignored or invalid: it becomes zeros or NaN and its logits are not read.
__device__ inline Coefficients filled_row(const RowInfo& info) {
    Coefficients s = {};
    s.filled = true, s.fill = info.ignored ? A(0) : not_a_number<A>();
    return s;
}

__device__ inline Coefficients coefficients(const RowsArgs& a, i64 row, const RowInfo& info, const Saved& saved) {
    Coefficients s = {};
    s.g_logp = load_statistic(a, a.grads, row, LOGP), s.g_entropy = load_statistic(a, a.grads, row, ENTROPY);
    s.g_kl = load_statistic(a, a.grads, row, KL), s.g_rkl = load_statistic(a, a.grads, row, RKL);
    A g_lse = load_statistic(a, a.grads, row, LSE), g_mean = load_statistic(a, a.grads, row, MEAN_LOGIT);
    s.w = g_lse + s.g_rkl;
    s.logp = saved.logp, s.label_gradient = s.g_logp * expm1_of(s.logp);
    s.lse = saved.lse, s.entropy = saved.entropy, s.ref_lse = saved.ref_lse, s.kl = saved.kl;
    s.mean_gradient = g_mean / A(a.classes);
    s.z_scale = z_scale(a, info.temperature), s.softcap_slope = softcap_slope(a), s.label = info.label;
    s.dz = A(a.scale) / info.temperature;
    A upstream[] = {s.g_logp, g_lse, s.g_entropy, g_mean, s.g_kl, s.g_rkl};
    bool none = true;
    for (A g : upstream) none = none && g == 0;
    s.filled = none || s.lse == -infinity<A>();
    if (s.ref_lse == -infinity<A>()) s.ref_lse = 0;  // then q = 2^(−inf − 0) = 0
    return s;
}

// Elements [first, first + UNIT), gradient over x.
__device__ inline void differentiate(A (&x)[UNIT], const A (&ref)[UNIT], i64 first, const Coefficients& s) {
    const A log2e = A(LOG2E);
    const u64 label = u64(s.label - first);
    const int at = label < UNIT ? int(label) : UNIT;  // the label's place in the unit
#pragma unroll
    for (int i = 0; i < UNIT; i++) {
        bool is_label = needs(LOGP) && i == at;
        A t = softcapped(x[i], s.softcap_slope), log_p = is_label ? s.logp : fma_of(s.z_scale, t, -s.lse), p = exp2_of(log2e * log_p);
        A g = s.w, rest = is_label ? s.label_gradient : s.g_logp * p;
        if (needs(ENTROPY) && s.g_entropy != 0) g -= s.g_entropy * (log_p + s.entropy);
        if (needs(KL) || needs(RKL)) {
            A log_q = fma_of(s.z_scale, softcapped(ref[i], s.softcap_slope), -s.ref_lse);
            if (needs(KL) && s.g_kl != 0) g += s.g_kl * (log_p - log_q - s.kl);
            if (needs(RKL) && s.g_rkl != 0) rest += s.g_rkl * exp2_of(log2e * log_q);
        }
        A gradient = (p == 0 ? A(0) : p * g) - rest;
        if (needs(MEAN_LOGIT)) gradient += s.mean_gradient;
        x[i] = gradient * (SOFTCAP ? s.dz * (1 - t * t) : s.dz);
    }
}

__device__ inline void fill(const X& out, i64 tile, int lane, A value) {
    A values[UNIT];
#pragma unroll
    for (int i = 0; i < UNIT; i++) values[i] = value;
    for (int u = 0; u < UNROLL; u++) write(out, tile + lane * UNIT + u * STEP, values);
}

#endif
