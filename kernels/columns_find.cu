// Which columns of a strip are to be gathered: those in which some row has p ≥ eps. Of the others, what all rows have together.
//
// Traffic: every logit is read once; a flag and a number are written per strip and column.
// A block takes as many columns as its threads have units and goes down the rows of the strip, so a column is one thread's and its sum
// has the same bits at every run. Rows' factors come through shared memory, THREADS rows at a time; behind the last row come some
// without probabilities, so that every turn of the loop has IN_FLIGHT of them.

#include "columns.cuh"

// What a thread knows of its columns.
struct Found {
    A largest[UNIT], sum[UNIT];

    __device__ void add(const unsigned* words, const RowFactors& row, int first) {
        A x[UNIT];
        X::widen(x, words);
        A factor = row.factor, offset = row.offset;
        const int own = row.label - first;
        if (row.label == ALL_LABELS || (own >= 0 && own < UNIT)) {  // seldom
#pragma unroll
            for (int i = 0; i < UNIT; i++) x[i] = row.label == ALL_LABELS || own == i ? -infinity<A>() : x[i];
            if (row.label == ALL_LABELS) factor = 1;
        }
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            A p = exp2_of(fma_of(factor, x[i], offset));
            largest[i] = max_of(largest[i], p), sum[i] += p;
        }
    }
};

// `count` rows from `begin` on, whose units are granules inside of them if WHOLE.
template <bool WHOLE>
__device__ inline void add_rows(const ColumnsArgs& a, Found& found, const RowFactors* factors, i64 begin, int count, int first) {
#pragma unroll 1
    for (int r = 0; r < count; r += IN_FLIGHT) {
        unsigned words[IN_FLIGHT][X::WORDS];
#pragma unroll
        for (int u = 0; u < IN_FLIGHT; u++) {
            const LOGIT* row = a.logits + (begin + (r + u < count ? r + u : count - 1)) * a.stride;
            if (WHOLE) X::fetch(words[u], row + first);
            else X(row, a.width, 0).fetch_any(words[u], first, A(0));
        }
#pragma unroll
        for (int u = 0; u < IN_FLIGHT; u++) found.add(words[u], factors[r + u], first);
    }
}

__device__ inline void write(const ColumnsArgs& a, i64 strip, int first, const Found& found) {
#pragma unroll
    for (int i = 0; i < UNIT; i++) {
        if (first + i >= a.width) return;
        bool active = found.largest[i] >= A(a.eps);
        __stcs(a.active + strip * a.width + first + i, u8(active));
        store(a.tails + strip * a.width + first + i, active ? A(0) : found.sum[i] / A(a.eps));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) columns_find(const ColumnsArgs a) {
    __shared__ RowFactors factors[THREADS];
    const i64 columns = i64(THREADS) * UNIT, across = (a.width + columns - 1) / columns;
    const i64 strips = strip_count(a);
    const bool aligned = u64(a.logits) % 16 == 0 && a.stride * sizeof(LOGIT) % 16 == 0;
    for (i64 item = blockIdx.x; item < strips * across; item += gridDim.x) {
        const i64 strip = item / across;
        const int first = int(item % across * columns) + threadIdx.x * UNIT;
        const i64 end = strip_end(a, strip);
        Found found = {};
#pragma unroll 1
        for (i64 begin = strip * a.strip_rows; begin < end; begin += THREADS) {
            const int count = int(end - begin < THREADS ? end - begin : THREADS);
            __syncthreads();  // nobody reads the rows before
            factors[threadIdx.x] = row_factors(a, begin + threadIdx.x, end);
            __syncthreads();
            if (aligned && first + UNIT <= a.width) add_rows<true>(a, found, factors, begin, count, first);
            else if (first < a.width) add_rows<false>(a, found, factors, begin, count, first);
        }
        if (first < a.width) write(a, strip, first, found);
    }
}
