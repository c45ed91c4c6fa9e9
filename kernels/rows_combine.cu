// Second step of rows_forward where rows are split over blocks: merges each row's chunks in order and writes its values.
//
// Traffic: 12 numbers per chunk and the label's logit are read, one number is written per row and statistic.
// One thread per row. Rows without a value (ignored, label out of range) were written by rows_forward.

#include "rows_values.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) rows_combine(const RowsArgs a) {
    for (i64 row = i64(blockIdx.x) * THREADS + threadIdx.x; row < a.rows; row += i64(gridDim.x) * THREADS) {
        RowInfo info = row_info(a, row);
        if (info.ignored || info.invalid) continue;
        Partial total = empty_partial();
#pragma unroll 1
        for (i64 part = 0; part < a.parts; part++) merge(total, load_partial(a, row * a.parts + part));
        A logit = label_logit(a.logits + offset(a, row, a.logits_stride), a.width, info);
        A ref = NEEDS_REFERENCE ? label_logit(a.reference + offset(a, row, a.reference_stride), a.width, info) : A(0);
        store_values(a, row, evaluate(a, info, total, logit, ref));
    }
}
