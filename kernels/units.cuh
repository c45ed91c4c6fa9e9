// Number types, and rows of numbers read and written in units of 16 bytes whatever their alignment.
//
//   unit      a few consecutive elements of a row, owned by one thread
//   granule   16 bytes at a 16-byte boundary: what one load or store instruction moves
//
// Traffic: every element is loaded once. An aligned unit is loaded by whole granules; a unit off a boundary is cut out of the granules
// around it (one more load, of a granule that the neighbour reads too). Units at the two
// ends of a row, whose granules reach beyond it, are read element by element: not a byte outside a row is touched.
// Every access goes through __ldcs and __stcs (streaming: nothing is read twice), where the emulator checks it.
//
// Which thread owns which element follows from its place in the row alone, never from the row's address: a row gives the same bits
// at every address.

#ifndef PREFUSE_UNITS_CUH
#define PREFUSE_UNITS_CUH

#include "ptx.cuh"

typedef unsigned char u8;
typedef unsigned short u16;
typedef long long i64;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;
struct f16 { u16 bits; };
struct bf16 { u16 bits; };

constexpr double LOG2E = 1.4426950408889634, LN2 = 0.6931471805599453;

template <typename T> struct Accumulator { typedef float type; };
template <> struct Accumulator<f64> { typedef double type; };

__device__ inline float exp2_of(float x) { return exp2_fast(x); }
__device__ inline double exp2_of(double x) { return exp2(x); }
__device__ inline float log2_of(float x) { return log2f(x); }
__device__ inline double log2_of(double x) { return log2(x); }
__device__ inline float tanh_of(float x) { return tanhf(x); }
__device__ inline double tanh_of(double x) { return tanh(x); }
__device__ inline float expm1_of(float x) { return expm1f(x); }
__device__ inline double expm1_of(double x) { return expm1(x); }
__device__ inline float fma_of(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double fma_of(double a, double b, double c) { return fma(a, b, c); }
__device__ inline float max_of(float a, float b) { return fmaxf(a, b); }
__device__ inline double max_of(double a, double b) { return fmax(a, b); }

// 2^x without the special function unit, of any x: relative error 2^-23.5, 0 below 2^-127, +inf from 128 on, NaN of NaN.
// x = n + r, n a whole number, |r| ≤ 1/2; 2^r is a polynomial, the best of degree 6 for the relative error; 2^n is made of its bits.
__device__ inline float exp2_on_fma(float x) {
    const float to_whole = 12582912.0f;  // 1.5·2^23: a sum with it is rounded to a whole number, which its lowest bits hold
    x = min_or_nan(max_or_nan(x, -127.0f), 128.0f);
    float shifted = x + to_whole, r = x - (shifted - to_whole);
    float y = fmaf(0.00015345812f, r, 0.0013399931f);
    y = fmaf(y, r, 0.009618489f);
    y = fmaf(y, r, 0.055503286f);
    y = fmaf(y, r, 0.24022646f);
    y = fmaf(y, r, 0.6931472f);
    y = fmaf(y, r, 1.0f);
    return y * __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
}

// On B200 (sm_100) the special function units, one exponential in eight clocks of a scheduler, bound the bandwidth of kernels that do
// little else: there one exponential in so many is computed on the FMA pipes. 0: none.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 1000
constexpr int ONE_ON_FMA_IN = 8;
#else
constexpr int ONE_ON_FMA_IN = 0;
#endif

template <typename A> __device__ inline A infinity() { return A(__int_as_float(0x7f800000)); }
template <typename A> __device__ inline A not_a_number() { return A(__int_as_float(0x7fc00000)); }
template <typename A> __device__ inline A lowest() { return A(__int_as_float(int(0xff7fffffu))); }  // the least finite float

__device__ inline float load(const f16* p) { return f16_to_f32(__ldcs(&p->bits)); }
__device__ inline float load(const bf16* p) { return __uint_as_float(unsigned(__ldcs(&p->bits)) << 16); }
__device__ inline float load(const f32* p) { return __ldcs(p); }
__device__ inline double load(const f64* p) { return __ldcs(p); }

__device__ inline void store(f16* p, float x) { __stcs(&p->bits, u16(pack_f16(x, 0))); }
__device__ inline void store(bf16* p, float x) { __stcs(&p->bits, u16(pack_bf16(x, 0))); }
__device__ inline void store(f32* p, float x) { __stcs(p, x); }
__device__ inline void store(f64* p, double x) { __stcs(p, x); }

// Element i of a unit that is held in 32-bit words.
__device__ inline float element(const unsigned* words, int i, f16) { return f16_to_f32(u16(words[i / 2] >> (16 * (i % 2)))); }
__device__ inline float element(const unsigned* words, int i, bf16) {
    return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
}
__device__ inline float element(const unsigned* words, int i, f32) { return __uint_as_float(words[i]); }
__device__ inline double element(const unsigned* words, int i, f64) {
    return __hiloint2double(int(words[2 * i + 1]), int(words[2 * i]));
}

// The largest of the elements in COUNT words; NaN only where nothing else is there.
template <int COUNT> __device__ inline float largest_of(const unsigned* words, f16) {
    unsigned most = words[0];
#pragma unroll
    for (int w = 1; w < COUNT; w++) most = max_f16x2(most, words[w]);
    return max_of(element(&most, 0, f16()), element(&most, 1, f16()));
}
template <int COUNT> __device__ inline float largest_of(const unsigned* words, bf16) {
    unsigned most = words[0];
#pragma unroll
    for (int w = 1; w < COUNT; w++) most = max_bf16x2(most, words[w]);
    return max_of(element(&most, 0, bf16()), element(&most, 1, bf16()));
}
template <int COUNT> __device__ inline float largest_of(const unsigned* words, f32) {
    float most = element(words, 0, f32());
#pragma unroll
    for (int i = 1; i < COUNT; i++) most = max_of(most, element(words, i, f32()));
    return most;
}
template <int COUNT> __device__ inline double largest_of(const unsigned* words, f64) {
    double most = element(words, 0, f64());
#pragma unroll
    for (int i = 1; i < COUNT / 2; i++) most = max_of(most, element(words, i, f64()));
    return most;
}

template <int N> __device__ inline void pack(unsigned* words, const float (&x)[N], f16) {
    for (int i = 0; i < N / 2; i++) words[i] = pack_f16(x[2 * i], x[2 * i + 1]);
}
template <int N> __device__ inline void pack(unsigned* words, const float (&x)[N], bf16) {
    for (int i = 0; i < N / 2; i++) words[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
}
template <int N> __device__ inline void pack(unsigned* words, const float (&x)[N], f32) {
    for (int i = 0; i < N; i++) words[i] = __float_as_uint(x[i]);
}
template <int N> __device__ inline void pack(unsigned* words, const double (&x)[N], f64) {
    for (int i = 0; i < N; i++) {
        words[2 * i] = unsigned(__double2loint(x[i]));
        words[2 * i + 1] = unsigned(__double2hiint(x[i]));
    }
}

// One row of `size` elements, read in units of N elements.
template <typename T, int N> struct Row {
    typedef typename Accumulator<T>::type A;
    static constexpr int WORDS = N * sizeof(T) / 4, GRANULES = WORDS / 4, GRANULE = 16 / sizeof(T);

    const T* data;
    i64 size;
    unsigned skew;  // bytes by which units miss a 16-byte boundary, where element `phase` begins one

    __device__ Row(const T* data, i64 size, i64 phase) : data(data), size(size), skew(unsigned(u64(data + phase)) % 16) {}

    // Elements [first, end) are inside the row and their units are granules.
    __device__ bool aligned(i64 first, i64 end) const { return skew == 0 && first >= 0 && end <= size; }
    __device__ bool inside(i64 first) const { return first >= 0 && first + N <= size; }

    // An aligned unit as loaded, and as numbers: two steps, so that several loads can be in flight.
    __device__ static void fetch(unsigned (&words)[WORDS], const T* unit) {
#pragma unroll
        for (int g = 0; g < GRANULES; g++) put(words + 4 * g, __ldcs((const uint4*)unit + g));
    }
    __device__ void fetch(unsigned (&words)[WORDS], i64 first) const { fetch(words, data + first); }
    __device__ static void widen(A (&x)[N], const unsigned* words) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = element(words, i, T());
    }

    // Any unit; 0 where it leaves the row.
    __device__ void read(A (&x)[N], i64 first) const {
        unsigned words[WORDS];
        fetch_any(words, first, A(0));
        widen(x, words);
    }
    // Any unit as words; `outside` where it leaves the row.
    __device__ void fetch_any(unsigned (&words)[WORDS], i64 first, A outside) const {
        if (skew == 0 && inside(first)) fetch(words, first);
        else if (inside(first - GRANULE) && inside(first + GRANULE)) shift(words, first);
        else gather(words, first, outside);
    }
    // COUNT of them, `step` elements apart. Whole tiles, and units at 16-byte boundaries, are all loaded before the first is used; what is
    // left, at the ends of a row, comes unit by unit.
    template <int COUNT> __device__ void fetch_any(unsigned (&words)[COUNT][WORDS], i64 first, i64 step, A outside) const {
        if (skew == 0) {
#pragma unroll
            for (int u = 0; u < COUNT; u++)
                if (inside(first + u * step)) fetch(words[u], first + u * step);
        } else if (inside(first - GRANULE) && inside(first + (COUNT - 1) * step + GRANULE)) {
#pragma unroll
            for (int u = 0; u < COUNT; u++) shift(words[u], first + u * step);
            return;
        }
#pragma unroll 1
        for (int u = 0; u < COUNT; u++) {
            if (skew == 0 && inside(first + u * step)) continue;
            unsigned unit[WORDS];
            fetch_any(unit, first + u * step, outside);
#pragma unroll
            for (int v = 0; v < COUNT; v++)
#pragma unroll
                for (int w = 0; w < WORDS; w++) words[v][w] = v == u ? unit[w] : words[v][w];
        }
    }

private:
    struct Shifted { unsigned words[WORDS + 4]; };

    // A unit element by element.
    __device__ void gather(unsigned (&words)[WORDS], i64 first, A outside) const {
        const int low = first < 0 ? first < -N ? N : int(-first) : 0, left = first + N < size ? N : first < size ? int(size - first) : 0;
        const T* unit = data + first;
        A x[N];
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = i >= low && i < left ? load(unit + i) : outside;
        pack<N>(words, x, T());
    }
    // A unit off a boundary, cut out of the granules around it. Constant indices only: the words stay in registers.
    __device__ void shift(unsigned (&words)[WORDS], i64 first) const {
        Shifted c;
        const uint4* granule = (const uint4*)((const char*)(data + first) - skew);
#pragma unroll
        for (int g = 0; g <= GRANULES; g++) put(c.words + 4 * g, __ldcs(granule + g));
        if (skew & 8) drop_words<2>(c);
        if (skew & 4) drop_words<1>(c);
#pragma unroll
        for (int w = 0; w < WORDS; w++) words[w] = __funnelshift_r(c.words[w], c.words[w + 1], 8 * (skew & 3));
    }
    template <int COUNT> __device__ static void drop_words(Shifted& c) {
#pragma unroll
        for (int w = 0; w + COUNT < WORDS + 4; w++) c.words[w] = c.words[w + COUNT];
    }
    __device__ static void put(unsigned* words, uint4 v) { words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w; }
};

// Writes a unit that is inside the row and begins at a 16-byte boundary.
template <typename T, int N>
__device__ inline void write_aligned(const Row<T, N>& out, i64 first, const typename Accumulator<T>::type (&x)[N]) {
    unsigned words[Row<T, N>::WORDS];
    pack<N>(words, x, T());
#pragma unroll
    for (int g = 0; g < Row<T, N>::GRANULES; g++)
        __stcs((uint4*)(out.data + first) + g, make_uint4(words[4 * g], words[4 * g + 1], words[4 * g + 2], words[4 * g + 3]));
}

// Writes the elements of a unit that are inside the row: whole granules where it is aligned.
template <typename T, int N>
__device__ inline void write(const Row<T, N>& out, i64 first, const typename Accumulator<T>::type (&x)[N]) {
    if (out.skew == 0 && out.inside(first)) return write_aligned(out, first, x);
#pragma unroll
    for (int i = 0; i < N; i++)
        if (first + i >= 0 && first + i < out.size) store((T*)out.data + first + i, x[i]);
}

#endif
