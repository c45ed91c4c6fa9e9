// Gradient of Σ_s grads[s]·statistic[s] with respect to the raw logits of N rows.
//
//   dx_j = dz_j/dx_j · ( g_logp·(1[j = y] − p_j) − g_rkl·q_j
//                        + p_j·(w − g_H·(log p_j + H) + g_kl·(log p_j − log q_j − kl)) + each )
//   w = g_lse + g_rkl,  each = g_mean/V, V that of the whole vocabulary,  log p_j = z_j − lse,  log q_j = ref_z_j − ref_lse
//
// Traffic: each logit is read once and its gradient written once, over the logits themselves if asked.
// 1 − p_y is taken before rounding to the logits' type, and from the saved logp: of a confident token, z_y − lse has lost
// most digits.
//
// A block (a warp for short rows) takes a chunk of a row. Units follow the gradient's 16-byte boundaries, so stores are whole
// granules; elements do not depend on one another, so where a unit begins cannot change a bit. A thread reads its units before it
// writes them and nobody else does either, which is why the gradient may lie over the logits.
//
// Invariants: a row that is ignored, has no upstream gradient or holds nothing but −inf is written as zeros and not read.
// A label outside [0, classes) makes its row NaN; one that is a class of another block has no element here. The saved values are
// those of the whole vocabulary. Where p = 0 its whole product is 0: no 0·inf. An upstream gradient of 0 adds
// nothing, whatever it multiplies.

#include "rows_gradient.cuh"

__device__ inline Saved saved(const RowsArgs& a, i64 row) {
    return {entry(a, a.saved, row, LOGP), entry(a, a.saved, row, LSE), entry(a, a.saved, row, ENTROPY),
            entry(a, a.saved, row, REF_LSE), entry(a, a.saved, row, KL)};
}

// One tile by `lane` of its group: aligned units are all read before the first is written.
__device__ inline void pull_back(const X& x, const Ref& ref, const X& out, i64 tile, int lane, const Coefficients& s) {
    i64 first = tile + lane * UNIT;
    A values[UNIT], others[UNIT];
    if (x.aligned(tile, tile + TILE) && (!WANTS_REFERENCE || ref.aligned(tile, tile + TILE))) {
        unsigned words[UNROLL][X::WORDS], ref_words[UNROLL][Ref::WORDS];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            x.fetch(words[u], first + u * STEP);
            if (WANTS_REFERENCE) ref.fetch(ref_words[u], first + u * STEP);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            X::widen(values, words[u]);
            if (WANTS_REFERENCE) Ref::widen(others, ref_words[u]);
            differentiate(values, others, first + u * STEP, s);
            write(out, first + u * STEP, values);
        }
    } else {
#pragma unroll 1
        for (int u = 0; u < UNROLL; u++) {
            x.read(values, first + u * STEP);
            if (WANTS_REFERENCE) ref.read(others, first + u * STEP);
            differentiate(values, others, first + u * STEP, s);
            write(out, first + u * STEP, values);
        }
    }
}

// Entropy and mean together leave too few registers for three blocks on some devices.
constexpr int RESIDENT = BLOCKS > 2 && wants(ENTROPY) && wants(MEAN_LOGIT) ? 2 : BLOCKS;

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) rows_backward(const RowsArgs a) {
    int group = threadIdx.x / ROW_THREADS, lane = threadIdx.x % ROW_THREADS;
    for (i64 item = i64(blockIdx.x) * GROUPS + group; item < a.rows * a.parts; item += i64(gridDim.x) * GROUPS) {
        i64 row = item / a.parts;
        Header h = header(a, row);
        Coefficients s = h.ignored || h.broken ? untouched(h) : coefficients(a, row, h, saved(a, row));
        LOGIT* gradient = a.gradient + offset(a, row, a.gradient_stride);
        i64 head = i64(u64(gradient) % 16 / sizeof(LOGIT));  // elements by which the row misses a boundary
        X out(gradient, a.width, -head), x(a.logits + offset(a, row, a.logits_stride), a.width, -head);
        Ref ref(WANTS_REFERENCE ? a.reference + offset(a, row, a.reference_stride) : 0, a.width, -head);
        i64 begin = item % a.parts * CHUNK - head, end = begin + CHUNK < a.width ? begin + CHUNK : a.width;
#pragma unroll 1
        for (i64 tile = begin; tile < end; tile += TILE)
            if (s.filled) fill(out, tile, lane, s.fill);
            else pull_back(x, ref, out, tile, lane, s);
    }
}
