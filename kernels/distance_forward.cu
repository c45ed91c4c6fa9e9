// Σ (a − b)² of each part of a sample: of the whole sample where it is one part, else distance_combine adds up the parts.
//
// Traffic: both arrays are read once; one number is written per part. One block per part: a thread sums its elements in the
// arithmetic's own precision; the sums of threads and parts are added in f64, in a fixed order. No atomics: a sample gives the same
// bits whatever else is in the batch.

#include "distances.cuh"

// What a thread sums. Outside of a sample both units are 0; a part ends where a unit does, or with its sample.
struct Sum {
    A& sum;
    __device__ void operator()(i64, const A (&a)[UNIT], const A (&b)[UNIT]) const {
#pragma unroll
        for (int i = 0; i < UNIT; i++) sum = fma_of(a[i] - b[i], a[i] - b[i], sum);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) distance_forward(const DistanceArgs a) {
    __shared__ f64 warps[THREADS / 32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (i64 item = blockIdx.x; item < a.samples * a.parts; item += gridDim.x) {
        i64 sample = item / a.parts, begin = item % a.parts * CHUNK;
        X x(a.first + sample * a.first_stride, a.size, 0);
        Y y(a.second + sample * a.second_stride, a.size, 0);
        A own = 0;
        traverse(x, y, begin, begin + CHUNK < a.size ? begin + CHUNK : a.size, Sum{own});
        f64 sum = own;
        for (int distance = 16; distance; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        if (lane == 0) warps[warp] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int w = 1; w < THREADS / 32; w++) sum += warps[w];
            if (a.partials) store(a.partials + item, sum);
            else store(a.out + sample, A(sum));
        }
        __syncthreads();  // `warps` is free for the next part
    }
}
