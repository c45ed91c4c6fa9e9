// Instructions that CUDA C++ names only in its headers, which these sources do without.
// The emulator (tests/emulator) brings its own version of this one file; everything else is compiled there unchanged.

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

// x, of which the compiler does not know where it comes from.
__device__ inline long long opaque(long long x) {
    asm("" : "+l"(x));
    return x;
}
