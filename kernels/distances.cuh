// Squared distances between the samples of two batches [B, D]: how the elements of two arrays are visited in pairs. Included by
// distance_*.cu.
//
// Traffic: each element of both arrays is loaded once, in units of 16 bytes of the narrower array, UNROLL of both in flight.
// A sample is cut into parts of CHUNK elements; a block of 256 threads takes one part at a time.
//
// Compile-time constants: FIRST, SECOND  element types (f16 bf16 f32 f64; f64 with f64 only)
//                         UNIT           elements that a thread takes at once: 16 bytes of the narrower array
//                         CHUNK          elements of a block's share of a sample

#ifndef PREFUSE_DISTANCES_CUH
#define PREFUSE_DISTANCES_CUH

#include "units.cuh"

constexpr int THREADS = 256;

typedef Accumulator<FIRST>::type A;
typedef Row<FIRST, UNIT> X;
typedef Row<SECOND, UNIT> Y;

// Units in flight per thread: 32 words of both arrays, or somewhat less.
constexpr int UNROLL = 32 / (X::WORDS + Y::WORDS);
constexpr i64 STEP = i64(THREADS) * UNIT;  // elements between the units of one thread
constexpr i64 TILE = UNROLL * STEP;
static_assert(CHUNK % TILE == 0, "a tile belongs to one chunk");

struct DistanceArgs {
    const FIRST* first;
    const SECOND* second;
    FIRST* gradient;     // [samples, size], contiguous
    const A* grads;      // [samples]
    A* out;              // [samples]
    f64* partials;       // [samples, parts]; null where a sample is one chunk
    i64 samples, size, parts;
    i64 first_stride, second_stride;
};

// Calls `take(first element, unit of a, unit of b)` for every unit of the elements [begin, end) that this thread has; their
// tiles begin at `begin`. Aligned units are all read before the first is taken.
template <typename Take>
__device__ inline void traverse(const X& x, const Y& y, i64 begin, i64 end, Take take) {
    A a[UNIT], b[UNIT];
#pragma unroll 1
    for (i64 tile = begin; tile < end; tile += TILE) {
        i64 first = tile + threadIdx.x * UNIT;
        if (x.aligned(tile, tile + TILE) && y.aligned(tile, tile + TILE)) {
            unsigned words[UNROLL][X::WORDS], other_words[UNROLL][Y::WORDS];
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                x.fetch(words[u], first + u * STEP);
                y.fetch(other_words[u], first + u * STEP);
            }
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                X::widen(a, words[u]);
                Y::widen(b, other_words[u]);
                take(first + u * STEP, a, b);
            }
        } else {
#pragma unroll 1
            for (int u = 0; u < UNROLL; u++) {
                if (first + u * STEP >= end) break;
                x.read(a, first + u * STEP);
                y.read(b, first + u * STEP);
                take(first + u * STEP, a, b);
            }
        }
    }
}

#endif
