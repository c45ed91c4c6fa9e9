// Ragged reductions: segment r of a packed array is [offsets[r], offsets[r + 1]).
//
//   segment_sum     out[r] = Σ values over segment r, accumulated in f64
//   segment_expand  out[i] = values[r] for every i of segment r: the transpose of segment_sum
//
// Traffic: each element is read, or written, once. One block per segment; a thread sums every 256th element, then a tree
// sums the threads, so a segment gives the same bits whatever stands beside it. No atomics. An empty segment sums to 0.
//
// Compile-time constant: VALUE  element type (f32 f64)

constexpr int THREADS = 256;

struct SegmentArgs {
    const VALUE* values;
    const i64* offsets;
    VALUE* out;
    i64 segments;
};

extern "C" __global__ void __launch_bounds__(THREADS) segment_sum(const SegmentArgs a) {
    __shared__ f64 warps[THREADS / 32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (i64 r = blockIdx.x; r < a.segments; r += gridDim.x) {
        i64 end = __ldcs(a.offsets + r + 1);
        f64 sum = 0;
#pragma unroll 4
        for (i64 i = __ldcs(a.offsets + r) + threadIdx.x; i < end; i += THREADS) sum += f64(load(a.values + i));
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
        i64 end = __ldcs(a.offsets + r + 1);
        for (i64 i = __ldcs(a.offsets + r) + threadIdx.x; i < end; i += THREADS) store(a.out + i, value);
    }
}
