// Adds rows to rows of a sum: sum[columns[i]] += product[i]. No two columns are equal, so nothing is lost without atomics; a −1 is left out.
//
// Traffic: a product is read once, its row of the sum read and written.
// A block takes a row, its threads a unit each.
//
// Compile-time constants: SUM, PRODUCT  element types (f16 bf16 f32 f64)
//                         UNIT          elements that a thread takes at once: 16 bytes of the narrower array

#include "units.cuh"

constexpr int THREADS = 256;

struct AddArgs {
    SUM* sum;                // [.., size], rows `stride` elements apart
    const PRODUCT* product;  // [count, size]
    const i64* columns;      // [count]
    i64 count, size, stride;
};

// A unit of the sum, of which not a byte more is read: its neighbours are being written.
__device__ inline void read_own(const Row<SUM, UNIT>& sum, typename Accumulator<SUM>::type (&x)[UNIT], i64 first) {
    if (sum.skew == 0 && sum.inside(first)) return sum.read(x, first);
#pragma unroll
    for (int u = 0; u < UNIT; u++) x[u] = first + u < sum.size ? load(sum.data + first + u) : 0;
}

extern "C" __global__ void __launch_bounds__(THREADS) columns_add(const AddArgs a) {
    for (i64 i = blockIdx.x; i < a.count; i += gridDim.x) {
        const i64 column = __ldcs(a.columns + i);
        if (column < 0) continue;
        Row<SUM, UNIT> sum(a.sum + column * a.stride, a.size, 0);
        Row<PRODUCT, UNIT> product(a.product + i * a.size, a.size, 0);
        for (i64 first = i64(threadIdx.x) * UNIT; first < a.size; first += i64(THREADS) * UNIT) {
            typename Accumulator<SUM>::type x[UNIT];
            typename Accumulator<PRODUCT>::type y[UNIT];
            read_own(sum, x, first), product.read(y, first);
#pragma unroll
            for (int u = 0; u < UNIT; u++) x[u] += y[u];
            write(sum, first, x);
        }
    }
}
