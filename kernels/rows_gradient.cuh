// The gradient of a row, element by element, and how it is written; the formula is in rows_backward.cu.

#ifndef PREFUSE_ROWS_GRADIENT_CUH
#define PREFUSE_ROWS_GRADIENT_CUH

#include "rows.cuh"

struct Coefficients {
    A w, g_logp, g_entropy, g_kl, g_rkl;   // upstream gradients
    A logp, lse, entropy, ref_lse, kl;     // saved by forward
    A own;                                 // g_logp·(p_y − 1)
    A each;                                // the gradient of the mean
    A slope, bend;                         // z = slope·t,  t = tanh(bend·x) or x
    A dz;                                  // dz/dx, but for the factor 1 − t² of the soft cap
    i64 label;
    bool filled;                           // the whole row becomes `fill`, its logits unread
    A fill;
};

// The statistics of a row that its gradient is computed from.
struct Saved { A logp, lse, entropy, ref_lse, kl; };

__device__ inline A entry(const RowsArgs& a, const A* table, i64 row, int stat) {
    return wants(stat) ? load(table + a.slot[stat] * a.rows + row) : A(0);
}

// A row whose logits nobody needs to look at, whatever its statistics.
__device__ inline Coefficients untouched(const Header& h) {
    Coefficients s = {};
    s.filled = true, s.fill = h.ignored ? A(0) : not_a_number<A>();
    return s;
}

__device__ inline Coefficients coefficients(const RowsArgs& a, i64 row, const Header& h, const Saved& saved) {
    Coefficients s = {};
    s.g_logp = entry(a, a.grads, row, LOGP), s.g_entropy = entry(a, a.grads, row, ENTROPY);
    s.g_kl = entry(a, a.grads, row, KL), s.g_rkl = entry(a, a.grads, row, RKL);
    A g_lse = entry(a, a.grads, row, LSE), g_mean = entry(a, a.grads, row, MEAN_LOGIT);
    s.w = g_lse + s.g_rkl;
    s.logp = saved.logp, s.own = s.g_logp * expm1_of(s.logp);
    s.lse = saved.lse, s.entropy = saved.entropy, s.ref_lse = saved.ref_lse, s.kl = saved.kl;
    s.each = g_mean / A(a.classes);
    s.slope = slope(a, h.temperature), s.bend = bend(a), s.label = h.label;
    s.dz = A(a.scale) / h.temperature;
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
        bool is_label = wants(LOGP) && i == at;
        A t = bent(x[i], s.bend), log_p = is_label ? s.logp : fma_of(s.slope, t, -s.lse), p = exp2_of(log2e * log_p);
        A g = s.w, rest = is_label ? s.own : s.g_logp * p;
        if (wants(ENTROPY) && s.g_entropy != 0) g -= s.g_entropy * (log_p + s.entropy);
        if (wants(KL) || wants(RKL)) {
            A log_q = fma_of(s.slope, bent(ref[i], s.bend), -s.ref_lse);
            if (wants(KL) && s.g_kl != 0) g += s.g_kl * (log_p - log_q - s.kl);
            if (wants(RKL) && s.g_rkl != 0) rest += s.g_rkl * exp2_of(log2e * log_q);
        }
        A gradient = (p == 0 ? A(0) : p * g) - rest;
        if (wants(MEAN_LOGIT)) gradient += s.each;
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
