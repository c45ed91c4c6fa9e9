// Second step of rows_forward where rows are split over blocks: merges each row's chunks in order and writes its values.
//
// One thread per row: it reads [parts] partials and the label's logit. Rows without a value (ignored, label out of range)
// were written by rows_forward.

#include "rows_values.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) rows_combine(const RowsArgs a) {
    for (i64 row = i64(blockIdx.x) * THREADS + threadIdx.x; row < a.rows; row += i64(gridDim.x) * THREADS) {
        Header h = header(a, row);
        if (h.ignored || h.broken) continue;
        Partial total = nothing();
#pragma unroll 1
        for (i64 part = 0; part < a.parts; part++) merge(total, kept(a, row * a.parts + part));
        A logit = label_logit(a.logits + offset(a, row, a.logits_stride), a.width, h);
        A ref = WANTS_REFERENCE ? label_logit(a.reference + offset(a, row, a.reference_stride), a.width, h) : A(0);
        put_all(a, row, evaluate(a, h, total, logit, ref));
    }
}
