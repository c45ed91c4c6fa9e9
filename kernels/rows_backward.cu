// Gradient of Σ_s grads[s]·statistic[s] with respect to the raw logits of N rows.
//
//   dx_j = dz_j/dx_j · ( g_logp·(1[j = y] − p_j) − g_rkl·q_j
//                        + p_j·(w − g_H·(log p_j + H) + g_kl·(log p_j − log q_j − kl)) + g_mean/V )
//   w = g_lse + g_rkl,  V that of the whole vocabulary,  log p_j = z_j − lse,  log q_j = ref_z_j − ref_lse
//
// Traffic: each logit is read once and its gradient written once, over the logits themselves if asked.
// 1 − p_y is taken before rounding to the logits' type, and from the saved logp: of a confident token, z_y − lse has lost
// most digits.
//
// A block (a warp for short rows) takes a chunk of a row, then strides to the next. Units follow the gradient's 16-byte boundaries,
// so stores are whole granules; elements do not depend on one another, so where a unit begins cannot change a bit. A thread reads
// its units before it writes them and no other thread touches them, which is why the gradient may lie over the logits.
//
// Invariants: a row that is ignored, has no upstream gradient or holds nothing but −inf is written as zeros and not read.
// A label outside [0, classes) makes its row NaN; one that is a class of another block has no element here. The saved values are
// those of the whole vocabulary. Where p = 0 its whole product is 0: no 0·inf. An upstream gradient of 0 adds
// nothing, whatever it multiplies.

#include "rows_gradient.cuh"

__device__ inline Saved saved(const RowsArgs& a, i64 row) {
    return {load_statistic(a, a.saved, row, LOGP), load_statistic(a, a.saved, row, LSE), load_statistic(a, a.saved, row, ENTROPY),
            load_statistic(a, a.saved, row, REF_LSE), load_statistic(a, a.saved, row, KL)};
}

// One tile of the gradient by `lane` of its group: aligned units are all read before the first is written.
__device__ inline void backward_tile(const X& x, const Ref& ref, const X& out, i64 tile, int lane, const Coefficients& s) {
    i64 first = tile + lane * UNIT;
    A values[UNIT], ref_values[UNIT];
    if (x.aligned(tile, tile + TILE) && (!NEEDS_REFERENCE || ref.aligned(tile, tile + TILE))) {
        unsigned words[UNROLL][X::WORDS], ref_words[UNROLL][Ref::WORDS];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            x.fetch(words[u], first + u * STEP);
            if (NEEDS_REFERENCE) ref.fetch(ref_words[u], first + u * STEP);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            X::widen(values, words[u]);
            if (NEEDS_REFERENCE) Ref::widen(ref_values, ref_words[u]);
            differentiate(values, ref_values, first + u * STEP, s);
            write(out, first + u * STEP, values);
        }
    } else {
#pragma unroll 1
        for (int u = 0; u < UNROLL; u++) {
            x.read(values, first + u * STEP);
            if (NEEDS_REFERENCE) ref.read(ref_values, first + u * STEP);
            differentiate(values, ref_values, first + u * STEP, s);
            write(out, first + u * STEP, values);
        }
    }
}

// Entropy and mean together leave too few registers for three blocks on some devices.
constexpr int BACKWARD_BLOCKS = RESIDENT_BLOCKS > 2 && needs(ENTROPY) && needs(MEAN_LOGIT) ? 2 : RESIDENT_BLOCKS;

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) rows_backward(const RowsArgs a) {
    int group = threadIdx.x / ROW_THREADS, lane = threadIdx.x % ROW_THREADS;
    for (i64 item = i64(blockIdx.x) * ROWS_PER_BLOCK + group; item < a.rows * a.parts; item += i64(gridDim.x) * ROWS_PER_BLOCK) {
        i64 row = item / a.parts;
        RowInfo info = row_info(a, row);
        Coefficients s = info.ignored || info.invalid ? filled_row(info) : coefficients(a, row, info, saved(a, row));
        LOGIT* gradient = a.gradient + offset(a, row, a.gradient_stride);
        i64 misalignment = i64(u64(gradient) % 16 / sizeof(LOGIT));  // elements by which the row misses a boundary
        X out(gradient, a.width, -misalignment), x(a.logits + offset(a, row, a.logits_stride), a.width, -misalignment);
        Ref ref(NEEDS_REFERENCE ? a.reference + offset(a, row, a.reference_stride) : 0, a.width, -misalignment);
        i64 begin = item % a.parts * CHUNK - misalignment, end = begin + CHUNK < a.width ? begin + CHUNK : a.width;
#pragma unroll 1
        for (i64 tile = begin; tile < end; tile += TILE)
            if (s.filled) fill(out, tile, lane, s.fill);
            else backward_tile(x, ref, out, tile, lane, s);
    }
}
