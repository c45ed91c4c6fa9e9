// Number types, and arrays read and written in units of 16 bytes whatever their alignment.
//
//   unit      a few consecutive elements of a row, owned by one thread
//   granule   16 bytes at a 16-byte boundary: what one load or store instruction moves
//
// A unit that starts off a boundary is cut out of the granules around it, so which thread owns which element never
// depends on where in memory a row lies: a row gives the same bits at every address. Units at the two ends of a row,
// whose granules reach beyond it, are read element by element: not a byte outside a row is touched.
// Every access to global memory goes through __ldcs and __stcs, streaming since nothing is read twice; the emulator checks them.

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
__device__ inline float fma_of(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double fma_of(double a, double b, double c) { return fma(a, b, c); }
__device__ inline float max_of(float a, float b) { return fmaxf(a, b); }
__device__ inline double max_of(double a, double b) { return fmax(a, b); }

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

// Element i of a unit lying in 32-bit words.
__device__ inline float element(const unsigned* words, int i, f16) { return f16_to_f32(u16(words[i / 2] >> (16 * (i % 2)))); }
__device__ inline float element(const unsigned* words, int i, bf16) {
    return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
}
__device__ inline float element(const unsigned* words, int i, f32) { return __uint_as_float(words[i]); }
__device__ inline double element(const unsigned* words, int i, f64) {
    return __hiloint2double(int(words[2 * i + 1]), int(words[2 * i]));
}

template <int UNIT> __device__ inline void pack(unsigned* words, const float (&x)[UNIT], f16) {
    for (int i = 0; i < UNIT / 2; i++) words[i] = pack_f16(x[2 * i], x[2 * i + 1]);
}
template <int UNIT> __device__ inline void pack(unsigned* words, const float (&x)[UNIT], bf16) {
    for (int i = 0; i < UNIT / 2; i++) words[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
}
template <int UNIT> __device__ inline void pack(unsigned* words, const float (&x)[UNIT], f32) {
    for (int i = 0; i < UNIT; i++) words[i] = __float_as_uint(x[i]);
}
template <int UNIT> __device__ inline void pack(unsigned* words, const double (&x)[UNIT], f64) {
    for (int i = 0; i < UNIT; i++) {
        words[2 * i] = unsigned(__double2loint(x[i]));
        words[2 * i + 1] = unsigned(__double2hiint(x[i]));
    }
}

// One row of `size` elements, read in units of UNIT elements.
template <typename T, int UNIT> struct Row {
    typedef typename Accumulator<T>::type A;
    static constexpr int GRANULES = UNIT * sizeof(T) / 16;
    struct Raw { unsigned words[4 * GRANULES + 4]; };  // a unit as loaded, with the granule that a misaligned one ends in

    const T* data;
    i64 size;
    unsigned skew;  // bytes by which units starting at element `phase` (mod UNIT) miss a 16-byte boundary

    __device__ Row(const T* data, i64 size, i64 phase)
        : data(data), size(size), skew(unsigned(u64(data + phase)) % 16) {}

    // The granules under elements [first, end) all lie inside the row.
    __device__ bool holds(i64 first, i64 end) const {
        i64 margin = skew ? 16 / sizeof(T) : 0;
        return first - margin >= 0 && end + margin <= size;
    }
    __device__ void fetch(Raw& raw, i64 first) const {
        const uint4* granule = (const uint4*)((const char*)(data + first) - skew);
#pragma unroll
        for (int g = 0; g < GRANULES; g++) put(raw, g, __ldcs(granule + g));
        if (skew) put(raw, GRANULES, __ldcs(granule + GRANULES));
    }
    __device__ void widen(A (&x)[UNIT], Raw& raw) const {
        if (skew) realign(raw);
#pragma unroll
        for (int i = 0; i < UNIT; i++) x[i] = element(raw.words, i, T());
    }
    // Element by element; 0 where the unit leaves the row.
    __device__ void gather(A (&x)[UNIT], i64 first) const {
#pragma unroll
        for (int i = 0; i < UNIT; i++) x[i] = first + i >= 0 && first + i < size ? load(data + first + i) : A(0);
    }

    __device__ static void put(Raw& raw, int g, uint4 v) {
        raw.words[4 * g] = v.x, raw.words[4 * g + 1] = v.y, raw.words[4 * g + 2] = v.z, raw.words[4 * g + 3] = v.w;
    }
    // Moves the unit to the front of its granules; constant indices only, so that the words stay in registers.
    __device__ void realign(Raw& raw) const {
        constexpr int WORDS = 4 * GRANULES;
        if (skew & 8)
#pragma unroll
            for (int w = 0; w < WORDS + 2; w++) raw.words[w] = raw.words[w + 2];
        if (skew & 4)
#pragma unroll
            for (int w = 0; w < WORDS + 1; w++) raw.words[w] = raw.words[w + 1];
        if (skew & 3)
#pragma unroll
            for (int w = 0; w < WORDS; w++) raw.words[w] = __funnelshift_r(raw.words[w], raw.words[w + 1], 8 * (skew & 3));
    }
};
