// Single PTX instructions: conversions, 2^x, shared memory of other blocks. CUDA C++ names them only in its own headers, which these
// sources do without, so that NVRTC needs nothing but what is in this folder.
//
// Global memory is not touched here. The emulator (tests/emulator) brings its own version of this one file, under the same include
// guard; everything else is compiled there unchanged.

#ifndef PREFUSE_PTX_CUH
#define PREFUSE_PTX_CUH

// 2^x; relative error 2^-22, results below 2^-126 are 0.
__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float f16_to_f32(unsigned short bits) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
    return y;
}

// Two numbers rounded to nearest even, the first in the low half of the word.
__device__ inline unsigned pack_f16(float low, float high) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

__device__ inline unsigned pack_bf16(float low, float high) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// The larger of each half; of a number and a NaN, the number.
__device__ inline unsigned max_f16x2(unsigned a, unsigned b) {
    unsigned word;
    asm("max.f16x2 %0, %1, %2;" : "=r"(word) : "r"(a), "r"(b));
    return word;
}

__device__ inline unsigned max_bf16x2(unsigned a, unsigned b) {
    unsigned word;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(word) : "r"(a), "r"(b));
    return word;
}

// NaN where one of them is.
__device__ inline float max_or_nan(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
__device__ inline float min_or_nan(float a, float b) {
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// x, of which the compiler does not know where it comes from.
__device__ inline long long opaque(long long x) {
    asm("" : "+l"(x));
    return x;
}

// The block's dynamic shared memory; the launch gives its size.
__device__ inline uint4* dynamic_shared() {
    extern __shared__ uint4 memory[];
    return memory;
}

// Clusters of blocks, from sm_90 on. Everything written to shared memory before a block arrives can be read after any other has
// waited; every thread does both, in turns, its whole warp together (`aligned`).
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Writes to the shared memory of block `rank` of the cluster, where `p` points to in this block's.
__device__ inline unsigned in_block(const void* p, unsigned rank) {
    unsigned address;
    asm("{ .reg .u64 shared; .reg .u32 own; cvta.to.shared.u64 shared, %1; cvt.u32.u64 own, shared;"
        " mapa.shared::cluster.u32 %0, own, %2; }"
        : "=r"(address)
        : "l"(p), "r"(rank));
    return address;
}
__device__ inline void cluster_store(float* p, unsigned rank, float x) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(in_block(p, rank)), "f"(x) : "memory");
}
__device__ inline void cluster_store(double* p, unsigned rank, double x) {
    asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(in_block(p, rank)), "d"(x) : "memory");
}

#endif
