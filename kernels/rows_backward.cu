// Gradient of Σ_s grads[s]·statistic[s] with respect to the raw logits of N rows.
//
//   dx_j = dz_j/dx_j · ( g_logp·(1[j = y] − p_j) − g_rkl·q_j
//                        + p_j·(w − g_H·(log p_j + H) + g_kl·(log p_j − log q_j − kl)) + g_mean/V )
//   w = g_lse + g_rkl,  V that of the whole vocabulary,  log p_j = z_j − lse,  log q_j = ref_z_j − ref_lse
//
// Traffic: each logit is read once and its gradient written once (the label's twice), over the logits themselves if asked.
// 1 − p_y is taken before rounding to the logits' type, and from the saved logp: of a confident token, z_y − lse has lost
// most digits.
//
// A block (a warp for short rows) takes a chunk of a row, then strides to the next. Units follow the gradient's 16-byte boundaries,
// so stores are whole granules; elements do not depend on one another, so where a unit begins cannot change a bit. A thread reads
// its units before it writes them and no other thread touches them, which is why the gradient may lie over the logits. Who has the
// label's unit computes the label before the row and stores it over what has been written for it, behind the row.
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

// A tile of a thread that begins at `first`. WHOLE: the row fills it, and units are granules. All units are read before the first is
// written.
template <bool WHOLE, typename Factors>
__device__ inline void pull_back_tile(const X& x, const Ref& ref, const X& out, i64 first, const Factors& s) {
    A values[UNIT], ref_values[UNIT];
    unsigned words[UNROLL][X::WORDS], ref_words[UNROLL][Ref::WORDS];
    if (WHOLE) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            x.fetch(words[u], first + u * STEP);
            if (NEEDS_REFERENCE) ref.fetch(ref_words[u], first + u * STEP);
        }
    } else {
        x.fetch_any(words, first, STEP, A(0));
        if (NEEDS_REFERENCE) ref.fetch_any(ref_words, first, STEP, A(0));
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        X::widen(values, words[u]);
        if (NEEDS_REFERENCE) Ref::widen(ref_values, ref_words[u]);
        differentiate(values, ref_values, s);
        if (WHOLE) write_aligned(out, first + u * STEP, values);
        else write(out, first + u * STEP, values);
    }
}

// The chunk that begins at `begin`, by `lane` of its group. FAST: whole tiles have a loop of their own.
template <bool FAST, typename Factors>
__device__ inline void pull_back(const X& x, const Ref& ref, const X& out, i64 begin, int lane, const Factors& s) {
    const bool aligned = x.skew == 0 && (!NEEDS_REFERENCE || ref.skew == 0);
    i64 end = begin + CHUNK < x.size ? begin + CHUNK : x.size, tile = begin;
#pragma unroll 1
    while (tile < end) {
        if (FAST && aligned && tile >= 0) {
#pragma unroll 1
            for (; tile + TILE <= end; tile += TILE) pull_back_tile<true>(x, ref, out, tile + lane * UNIT, s);
        }
        if (tile < end) pull_back_tile<false>(x, ref, out, tile + lane * UNIT, s);
        tile += TILE;
    }
}

// The label's gradient and where it belongs (null: another thread has it), while it waits for the end of the row. With f32 logits four
// blocks fit where that is in shared memory, each thread's own place; from sm_100 on where it is in registers.
struct LabelGradient {
    LOGIT* at;
    A value;
};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool LABEL_WAITS_IN_SHARED = false;
#else
constexpr bool LABEL_WAITS_IN_SHARED = sizeof(LOGIT) == 4 && needs(LOGP);
#endif

// Entropy and mean together leave too few registers for three blocks on some devices.
constexpr int BACKWARD_BLOCKS = RESIDENT_BLOCKS > 2 && needs(ENTROPY) && needs(MEAN_LOGIT) ? 2 : RESIDENT_BLOCKS;

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) rows_backward(const RowsArgs a) {
    __shared__ LabelGradient labels[LABEL_WAITS_IN_SHARED ? THREADS : 1];
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
        if (s.filled) {
#pragma unroll 1
            for (i64 tile = begin; tile < end; tile += TILE) fill(out, tile, lane, s.fill);
            continue;
        }
        bool has_label = needs(LOGP) && info.label < a.width && label_lane(info.label - begin) == lane;
        A label = 0;
        if (has_label) label = element_gradient(load(x.data + info.label), NEEDS_REFERENCE ? load(ref.data + info.label) : A(0), true, s);
        if (LABEL_WAITS_IN_SHARED) labels[threadIdx.x] = {has_label ? gradient + info.label : 0, label};
        Folded f = folded(s);
        if (f.moderate) pull_back<true>(x, ref, out, begin, lane, f);
        else pull_back<false>(x, ref, out, begin, lane, s);
        if (LABEL_WAITS_IN_SHARED) {
            LabelGradient own = labels[threadIdx.x];
            if (own.at) store(own.at, own.value);
        } else if (has_label) store(gradient + info.label, label);
    }
}
