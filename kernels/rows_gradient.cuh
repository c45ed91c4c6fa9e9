// The gradient of a row, element by element, in the registers of the thread that holds the logits; rows_backward.cu has the formula.
// Used by rows_backward, which loads logits and saved statistics, and by rows_both, which has both at hand.
//
// Traffic: per row the upstream gradients, one number each. Nothing per element: differentiate() turns logits into their gradient in
// place. fill() writes one number over a tile of a row that needs no logits.
//
// All factors that are the same for a row are folded into a few numbers, Folded, with which an element but the label's takes
//
//   dx = p·(constant + slope·l + cross·(l − m)) − q·rkl + mean,   l ~ log p,  m ~ log q
//
// That is right where these numbers are finite and moderate, as they nearly always are; a row where they are not, and the label of
// every row, take the formula itself (element_gradient). The label is computed before the row, whose logits may be written over, and
// stored behind it.

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

// 16-bit logits have l = log2 p, from one multiplication by log2(e)·dz; for others l = log p: of a confident token that is more exact.
constexpr bool BASE_TWO = sizeof(LOGIT) == 2;

struct Folded {
    A scale, lse, ref_lse;                   // l = scale·t − lse,  m = scale·u − ref_lse
    A constant, slope, cross, rkl, mean;     // with dz/dx, but for the factor 1 − t² of the soft cap
    A softcap_slope;
    bool moderate;                           // nothing can come out infinite or NaN on the way
};

constexpr A LEAST_LOG = A(-1e29), LARGEST_FACTOR = A(1e8);  // whose product is finite; 2^LEAST_LOG is 0

__device__ inline bool is_moderate(A factor) { return factor > -LARGEST_FACTOR && factor < LARGEST_FACTOR; }

// The terms of an upstream gradient of 0 are left out, whatever they would multiply.
__device__ inline Folded folded(const Coefficients& s) {
    const A unit = BASE_TWO ? A(LN2) : A(1), base = BASE_TWO ? A(LOG2E) : A(1);
    A constant = s.w - s.g_logp, slope = 0, cross = 0;
    if (needs(ENTROPY) && s.g_entropy != 0) slope = -s.g_entropy, constant -= s.g_entropy * s.entropy;
    if (needs(KL) && s.g_kl != 0) cross = s.g_kl, constant -= s.g_kl * s.kl;
    Folded f = {};
    f.scale = s.z_scale * base, f.lse = s.lse * base, f.constant = s.dz * constant, f.softcap_slope = s.softcap_slope;
    f.moderate = f.lse - f.lse == 0 && is_moderate(f.constant);
    if (needs(ENTROPY)) f.slope = s.dz * unit * slope, f.moderate = f.moderate && is_moderate(f.slope);
    if (needs(KL)) f.cross = s.dz * unit * cross, f.moderate = f.moderate && is_moderate(f.cross);
    if (needs(RKL)) f.rkl = s.dz * s.g_rkl, f.moderate = f.moderate && is_moderate(f.rkl);
    if (needs(MEAN_LOGIT)) f.mean = s.dz * s.mean_gradient, f.moderate = f.moderate && is_moderate(f.mean);
    if (needs(KL) || needs(RKL)) f.ref_lse = s.ref_lse * base, f.moderate = f.moderate && f.ref_lse - f.ref_lse == 0;
    return f;
}

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
    s.mean_gradient = needs(MEAN_LOGIT) ? g_mean / A(a.classes) : A(0);
    s.z_scale = z_scale(a, info.temperature), s.softcap_slope = softcap_slope(a), s.label = info.label;
    s.dz = A(a.scale) / info.temperature;
    A upstream[] = {s.g_logp, g_lse, s.g_entropy, g_mean, s.g_kl, s.g_rkl};
    bool none = true;
    for (A g : upstream) none = none && g == 0;
    s.filled = none || s.lse == -infinity<A>();
    if (s.ref_lse == -infinity<A>()) s.ref_lse = 0;  // then q = 2^(−inf − 0) = 0
    return s;
}

// One element, by the formula itself: the label's, whose log p has been saved, or any other.
__device__ inline A element_gradient(A x, A ref, bool is_label, const Coefficients& s) {
    const A log2e = A(LOG2E);
    A t = softcapped(x, s.softcap_slope), log_p = is_label ? s.logp : fma_of(s.z_scale, t, -s.lse), p = exp2_of(log2e * log_p);
    A g = s.w, rest = is_label ? s.label_gradient : s.g_logp * p;
    if (needs(ENTROPY) && s.g_entropy != 0) g -= s.g_entropy * (log_p + s.entropy);
    if (needs(KL) || needs(RKL)) {
        A log_q = fma_of(s.z_scale, softcapped(ref, s.softcap_slope), -s.ref_lse);
        if (needs(KL) && s.g_kl != 0) g += s.g_kl * (log_p - log_q - s.kl);
        if (needs(RKL) && s.g_rkl != 0) rest += s.g_rkl * exp2_of(log2e * log_q);
    }
    A gradient = (p == 0 ? A(0) : p * g) - rest;
    if (needs(MEAN_LOGIT)) gradient += s.mean_gradient;
    return gradient * (SOFTCAP ? s.dz * (1 - t * t) : s.dz);
}

// A unit without regard to the label, gradient over x; of a row whose factors are moderate.
__device__ inline void differentiate(A (&x)[UNIT], const A (&ref)[UNIT], const Folded& f) {
    constexpr bool FEW_TERMS = !needs(ENTROPY) && !needs(KL) && !needs(RKL);  // statistics without a gradient change nothing
    const A log2e = A(LOG2E);
#pragma unroll
    for (int i = 0; i < UNIT; i++) {
        A t = softcapped(x[i], f.softcap_slope), l = fma_of(f.scale, t, -f.lse), g = f.constant, rest = f.mean;
        if (needs(ENTROPY) || needs(KL)) l = max_of(l, LEAST_LOG);
        if (needs(ENTROPY)) g = fma_of(f.slope, l, g);
        if (needs(KL) || needs(RKL)) {
            A m = max_of(fma_of(f.scale, softcapped(ref[i], f.softcap_slope), -f.ref_lse), LEAST_LOG);
            if (needs(KL)) g = fma_of(f.cross, l - m, g);
            if (needs(RKL)) rest = fma_of(-f.rkl, exp2_of(BASE_TWO ? m : log2e * m), rest);
        }
        A p = exp2_of_unit<FEW_TERMS>(i, BASE_TWO ? l : log2e * l);
        A gradient = needs(MEAN_LOGIT) || needs(RKL) ? fma_of(p, g, rest) : p * g;
        x[i] = SOFTCAP ? gradient * (1 - t * t) : gradient;
    }
}
__device__ inline void differentiate(A (&x)[UNIT], const A (&ref)[UNIT], const Coefficients& s) {
#pragma unroll
    for (int i = 0; i < UNIT; i++) x[i] = element_gradient(x[i], ref[i], false, s);
}

// The lane that has the element at place `at` of a chunk; −1 where it is in another chunk.
__device__ inline int label_lane(i64 at) { return at >= 0 && at < CHUNK ? int(at / UNIT % ROW_THREADS) : -1; }

__device__ inline void fill(const X& out, i64 tile, int lane, A value) {
    A values[UNIT];
#pragma unroll
    for (int i = 0; i < UNIT; i++) values[i] = value;
    for (int u = 0; u < UNROLL; u++) write(out, tile + lane * UNIT + u * STEP, values);
}

#endif
