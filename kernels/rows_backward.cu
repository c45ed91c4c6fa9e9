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

__device__ inline A entry(const RowsArgs& a, const A* table, i64 row, int stat) {
    return wants(stat) ? load(table + a.slot[stat] * a.rows + row) : A(0);
}

__device__ inline Coefficients coefficients(const RowsArgs& a, i64 row, const Header& h) {
    Coefficients s = {};
    if (h.ignored) return s.filled = true, s;
    s.g_logp = entry(a, a.table, row, LOGP), s.g_entropy = entry(a, a.table, row, ENTROPY);
    s.g_kl = entry(a, a.table, row, KL), s.g_rkl = entry(a, a.table, row, RKL);
    A g_lse = entry(a, a.table, row, LSE), g_mean = entry(a, a.table, row, MEAN_LOGIT);
    s.w = g_lse + s.g_rkl;
    s.logp = entry(a, a.saved, row, LOGP), s.own = s.g_logp * expm1_of(s.logp);
    s.lse = entry(a, a.saved, row, LSE), s.entropy = entry(a, a.saved, row, ENTROPY);
    s.ref_lse = entry(a, a.saved, row, REF_LSE), s.kl = entry(a, a.saved, row, KL);
    s.each = g_mean / A(a.classes);
    s.slope = slope(a, h.temperature), s.bend = bend(a), s.label = h.label;
    s.dz = A(a.scale) / h.temperature;
    s.fill = not_a_number<A>();
    s.filled = h.broken;
    A upstream[] = {s.g_logp, g_lse, s.g_entropy, g_mean, s.g_kl, s.g_rkl};
    bool none = true;
    for (A g : upstream) none = none && g == 0;
    if (!h.broken && (none || s.lse == -infinity<A>())) s.filled = true, s.fill = 0;
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

__device__ inline void write(const X& out, i64 first, const A (&x)[UNIT]) {
    LOGIT* unit = (LOGIT*)out.data + first;
    if (out.aligned(first, first + UNIT)) {
        unsigned words[UNIT * sizeof(LOGIT) / 4];
        pack<UNIT>(words, x, LOGIT());
#pragma unroll
        for (int g = 0; g < X::GRANULES; g++)
            __stcs((uint4*)unit + g, make_uint4(words[4 * g], words[4 * g + 1], words[4 * g + 2], words[4 * g + 3]));
    } else {
#pragma unroll
        for (int i = 0; i < UNIT; i++)
            if (first + i >= 0 && first + i < out.size) store(unit + i, x[i]);
    }
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

__device__ inline void fill(const X& out, i64 tile, int lane, A value) {
    A values[UNIT];
#pragma unroll
    for (int i = 0; i < UNIT; i++) values[i] = value;
    for (int u = 0; u < UNROLL; u++) write(out, tile + lane * UNIT + u * STEP, values);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) rows_backward(const RowsArgs a) {
    int group = threadIdx.x / ROW_THREADS, lane = threadIdx.x % ROW_THREADS;
    for (i64 item = i64(blockIdx.x) * GROUPS + group; item < a.rows * a.parts; item += i64(gridDim.x) * GROUPS) {
        i64 row = item / a.parts;
        Coefficients s = coefficients(a, row, header(a, row));
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
