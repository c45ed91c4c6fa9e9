// Second step of rows_forward where rows are split over blocks: merges each row's chunks in order and writes its values.
//
// One thread per row: it reads [parts] partials and the label's logit. Rows without a value (ignored, label out of range)
// were written by rows_forward.

extern "C" __global__ void __launch_bounds__(THREADS) rows_combine(const RowsArgs a) {
    for (i64 row = i64(blockIdx.x) * THREADS + threadIdx.x; row < a.rows; row += i64(gridDim.x) * THREADS) {
        Header h = header(a, row);
        if (h.ignored || h.broken) continue;
        Partial total = nothing();
#pragma unroll 1
        for (i64 part = 0; part < a.parts; part++) merge(total, kept(a, row * a.parts + part));
        A t = bent(load(a.logits + offset(a, row, a.logits_stride) + h.label), bend(a));
        A u = WANTS_REFERENCE ? bent(load(a.reference + offset(a, row, a.reference_stride) + h.label), bend(a)) : A(0);
        finish(a, row, total, slope(a, h.temperature) * A(LOG2E), t, u);
    }
}
