// Second step of distance_forward where a sample is more than one part: adds up each sample's parts, in order.
//
// Traffic: one f64 read per part, one number written per sample. One thread per sample.

#include "distances.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) distance_combine(const DistanceArgs a) {
    for (i64 sample = i64(blockIdx.x) * THREADS + threadIdx.x; sample < a.samples; sample += i64(gridDim.x) * THREADS) {
        f64 sum = 0;
#pragma unroll 4
        for (i64 part = 0; part < a.parts; part++) sum += load(a.partials + sample * a.parts + part);
        store(a.out + sample, A(sum));
    }
}
