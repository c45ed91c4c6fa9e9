// The probabilities of a strip in the columns that were found, and what each row has in them.
//
// Traffic: of the logits, the sectors that hold such columns; a number is written per row and column, one per row and block.
// A thread keeps PER_THREAD columns and goes down the rows of the strip. What a row has is summed in the order of lanes and warps.

#include "columns.cuh"

constexpr int PER_THREAD = 4, PART = PER_THREAD * THREADS, WARPS = THREADS / 32;
constexpr int NO_PLACE = -2;  // behind the end of the list; −1, with which lists are filled up, is a place of 0

// Writes the probabilities of a row where `values` has the first of the thread's; their sum.
__device__ inline A store_row(const A (&x)[PER_THREAD], const int (&column)[PER_THREAD], const RowFactors& row, LOGIT* values) {
    A mass = 0;
#pragma unroll
    for (int k = 0; k < PER_THREAD; k++) {
        bool none = column[k] < 0 || column[k] == row.label || row.label == ALL_LABELS;
        A p = none ? A(0) : row.probability(x[k]);
        if (column[k] != NO_PLACE) store(values + k * THREADS, p);
        mass += p;
    }
    return mass;
}

extern "C" __global__ void __launch_bounds__(THREADS, sizeof(A) == 8 ? 1 : 2) columns_gather(const ColumnsArgs a) {
    __shared__ RowFactors factors[THREADS];
    __shared__ A masses[WARPS][THREADS];
    const i64 strips = strip_count(a);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (i64 item = blockIdx.x; item < strips * a.parts; item += gridDim.x) {
        const i64 strip = item / a.parts, part = item % a.parts, start = __ldcs(a.starts + strip);
        const i64 count = __ldcs(a.starts + strip + 1) - start;
        const i64 end = strip_end(a, strip);
        int column[PER_THREAD];
#pragma unroll
        for (int k = 0; k < PER_THREAD; k++) {
            i64 at = part * PART + k * THREADS + threadIdx.x;
            column[k] = at < count ? int(__ldcs(a.columns + start + at)) : NO_PLACE;
        }
#pragma unroll 1
        for (i64 begin = strip * a.strip_rows; begin < end; begin += THREADS) {
            const int rows = int(end - begin < THREADS ? end - begin : THREADS);
            LOGIT* values = a.values + start * a.strip_rows + (begin - strip * a.strip_rows) * count + part * PART + threadIdx.x;
            __syncthreads();  // nobody reads what is in shared memory
            factors[threadIdx.x] = row_factors(a, begin + threadIdx.x, end);
            __syncthreads();
#pragma unroll 1
            for (int r = 0; r < rows; r += IN_FLIGHT) {
                A x[IN_FLIGHT][PER_THREAD];
#pragma unroll
                for (int u = 0; u < IN_FLIGHT; u++) {
                    const LOGIT* logits = a.logits + (begin + (r + u < rows ? r + u : rows - 1)) * a.stride;
#pragma unroll
                    for (int k = 0; k < PER_THREAD; k++) x[u][k] = load(logits + (column[k] < 0 ? 0 : column[k]));
                }
#pragma unroll
                for (int u = 0; u < IN_FLIGHT; u++) {
                    if (r + u < rows) {
                        A mass = store_row(x[u], column, factors[r + u], values + (r + u) * count);
                        for (int distance = 16; distance; distance /= 2) mass += __shfl_xor_sync(0xffffffffu, mass, distance);
                        if (lane == 0) masses[warp][r + u] = mass;
                    }
                }
            }
            __syncthreads();
            if (threadIdx.x < rows) {
                A mass = 0;
                for (int w = 0; w < WARPS; w++) mass += masses[w][threadIdx.x];
                store(a.sums + part * a.rows + begin + threadIdx.x, mass);
            }
        }
    }
}
