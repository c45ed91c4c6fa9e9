// 2·g·(a − b), the gradient of Σ g·‖a − b‖² with respect to a.
//
// Traffic: both arrays are read once, the gradient is written once. One block per part of a sample. Units follow the gradient's
// 16-byte boundaries, so stores are whole granules; elements do not depend on one another, so where a unit begins cannot change a bit.

#include "distances.cuh"

struct Scale {
    const X& out;
    A factor;
    __device__ void operator()(i64 first, const A (&a)[UNIT], const A (&b)[UNIT]) const {
        A gradient[UNIT];
#pragma unroll
        for (int i = 0; i < UNIT; i++) gradient[i] = factor * (a[i] - b[i]);
        write(out, first, gradient);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) distance_backward(const DistanceArgs a) {
    for (i64 item = blockIdx.x; item < a.samples * a.parts; item += gridDim.x) {
        i64 sample = item / a.parts;
        FIRST* gradient = a.gradient + sample * a.size;
        i64 misalignment = i64(u64(gradient) % 16 / sizeof(FIRST));  // elements by which the sample misses a boundary
        X out(gradient, a.size, -misalignment), x(a.first + sample * a.first_stride, a.size, -misalignment);
        Y y(a.second + sample * a.second_stride, a.size, -misalignment);
        i64 begin = item % a.parts * CHUNK - misalignment, end = begin + CHUNK;
        // The last chunk takes the elements that the misalignment has pushed out of it as well.
        if (item % a.parts == a.parts - 1) end = a.size;
        traverse(x, y, begin, end, Scale{out, A(2) * load(a.grads + sample)});
    }
}
