// Ragged reductions: segment r of a packed array is [offsets[r], offsets[r + 1]).
//
//   segment_sum     out[r] = Σ values over segment r, accumulated in f64
//   segment_expand  out[i] = values[r] for every i of segment r: the transpose of segment_sum
//
// Traffic: each element is read, or written, once; two offsets and one number per segment. One block per segment; a thread sums every
// 256th element, then a tree sums the threads, so a segment gives the same bits whatever else is in the batch. No atomics. An empty
// segment sums to 0. Offsets that leave the array or decrease give NaN, and nothing outside the array is touched.
//
// Compile-time constant: VALUE  element type (f32 f64)

#include "units.cuh"

constexpr int THREADS = 256;

struct SegmentArgs {
    const VALUE* values;
    const i64* offsets;
    VALUE* out;
    i64 segments, length;  // of the packed array
};

struct Range {
    i64 begin, end;
    bool invalid;
};

__device__ inline Range range(const SegmentArgs& a, i64 r) {
    Range s = {__ldcs(a.offsets + r), __ldcs(a.offsets + r + 1), false};
    if (s.begin < 0 || s.end < s.begin || s.end > a.length) s = {0, 0, true};
    return s;
}

extern "C" __global__ void __launch_bounds__(THREADS) segment_sum(const SegmentArgs a) {
    __shared__ f64 warps[THREADS / 32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (i64 r = blockIdx.x; r < a.segments; r += gridDim.x) {
        Range s = range(a, r);
        f64 sum = s.invalid ? not_a_number<f64>() : 0;
#pragma unroll 4
        for (i64 i = s.begin + threadIdx.x; i < s.end; i += THREADS) sum += f64(load(a.values + i));
        for (int distance = 16; distance; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        if (lane == 0) warps[warp] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int w = 1; w < THREADS / 32; w++) sum += warps[w];
            store(a.out + r, VALUE(sum));
        }
        __syncthreads();  // `warps` is free for the next segment
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) segment_expand(const SegmentArgs a) {
    for (i64 r = blockIdx.x; r < a.segments; r += gridDim.x) {
        VALUE value = load(a.values + r);
        Range s = range(a, r);
        for (i64 i = s.begin + threadIdx.x; i < s.end; i += THREADS) store(a.out + i, value);
    }
}
