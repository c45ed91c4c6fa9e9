// Single PTX instructions: conversions, 2^x, shared memory of other blocks, copies into shared memory, tensor cores. CUDA C++ names them
// only in its own headers, which these sources do without, so that NVRTC needs nothing but what is in this folder.
//
// Global memory is not touched here but by `copy_later`. The emulator (tests/emulator) brings its own version of this one file, under the
// same include guard; everything else is compiled there unchanged.

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

// Where something is in the block's shared memory, in bytes.
typedef unsigned Shared;
__device__ inline Shared shared_address(const void* p) {
    Shared address;
    asm("{ .reg .u64 shared; cvta.to.shared.u64 shared, %1; cvt.u32.u64 %0, shared; }" : "=r"(address) : "l"(p));
    return address;
}

// Copies 16 bytes of global to shared memory while the thread goes on, or zeros where nothing is `there`; both begin at 16-byte boundaries.
// `copies_end` ends a group of copies; `copies_wait` waits until no more than the LEFT last groups are under way.
__device__ inline void copy_later(Shared to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ inline void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ inline void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Four matrices of 8 × 8 numbers of 16 bits from shared memory, by a whole warp. Lane l says where row l % 8 of matrix l / 8 is, and gets
// numbers 2·(l % 4) and the next of row l / 4 of each; of the transposed matrices where they are loaded so.
__device__ inline void load_matrices(unsigned (&x)[4], Shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row)
                 : "memory");
}
__device__ inline void load_transposed(unsigned (&x)[4], Shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row)
                 : "memory");
}

// c += a·b of [16, 16] and [16, 8], by a whole warp. With g = lane / 4 and t = 2·(lane % 4) it has of a: (g, t), (g + 8, t), (g, t + 8),
// (g + 8, t + 8), of b: (t, g), (t + 8, g), each with the next k; of c: (g, t) and the next column, the same of row g + 8.
__device__ inline void multiply_add_f16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply_add_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif
