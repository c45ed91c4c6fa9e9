// What the kernels generated from an objective's graph are made of; the generated text includes this file.
//
// A space is a set of elements cut into one run of consecutive elements (a segment) per element of the space above it.
// Everything is computed in f64. Arrays of the workspace ("slots") hold one number per element of a space.
//
//   team            the threads that work on one segment together: a warp, or the block where the segment is long
//   chunk           CHUNK_LENGTH consecutive elements: what one block sums on the way to a number for the whole batch
//   Sum Max Min LogSumExp   what a thread has accumulated of the elements it has seen; merged in an order that follows from
//                   the length of the segment alone, so a segment gives the same bits whatever else is in the batch
//
// Traffic: a value is loaded or computed where it is needed, at most once per element and traversal (sorting compares all pairs of a
// segment); slots hold what is read by index, or is too dear to be computed again.
//
// A stage reads only what earlier stages wrote. Between two stages there is a barrier of the one block, or the end of a
// launch: what other threads wrote is read with __ldcg (never from a stale line of the first-level cache).
//
// Such a kernel is compiled when its objective is first used: what is large and used often is not inlined, nor unrolled.
// Bodies get their index through opaque(): the compiler would otherwise step an address per array along with it, and keep those in
// as many registers as all the rest takes.

#ifndef PREFUSE_OBJECTIVE_CUH
#define PREFUSE_OBJECTIVE_CUH

#include "units.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr i64 CHUNK_LENGTH = 2048;
constexpr i64 WARP_LENGTH = 128;        // elements that a warp works on alone
constexpr i64 ANY_LENGTH = 1LL << 62;

struct Array {           // element i is take[i] (or i) times `stride` elements from `data`
    u64 data;
    i64 stride;
    const i64* take;     // null: all elements, in order
};

struct Space {           // segment p is [start(p), start(p + 1))
    const i64* offsets;  // null: `segment_length` elements each
    i64 step;            // between offsets, in elements
    i64 count;           // number of elements; with offsets: never more than that
    i64 segment_length;
};

struct Range { i64 begin, end; };

__device__ inline i64 min_i64(i64 a, i64 b) { return a < b ? a : b; }
__device__ inline i64 max_i64(i64 a, i64 b) { return a > b ? a : b; }

// Offsets that decrease or leave the array are clamped, so that nothing outside is touched.
__device__ inline i64 start(const Space& space, i64 p) {
    i64 at = space.offsets ? __ldcg(space.offsets + p * space.step) : p * space.segment_length;
    return max_i64(0, min_i64(at, space.count));
}
__device__ inline Range segments(const Space& space, Range above) {  // all elements below the given ones
    i64 begin = start(space, above.begin);
    return {begin, max_i64(begin, start(space, above.end))};
}
__device__ inline Range segment(const Space& space, i64 p) { return segments(space, {p, p + 1}); }

// The segment, one of `segments`, that holds element i.
__device__ inline i64 segment_of(const Space& space, i64 segments, i64 i) {
    if (!space.offsets) return space.segment_length == 1 ? i : i / space.segment_length;
    i64 low = 0, high = segments - 1;
    while (low < high) {
        i64 middle = (low + high + 1) / 2;
        if (start(space, middle) <= i) low = middle;
        else high = middle - 1;
    }
    return low;
}

// Numbers in and out.

__device__ inline f64 number(const bool* p) { return __ldcs((const unsigned char*)p) ? 1 : 0; }
__device__ inline f64 number(const i64* p) { return f64(__ldcs(p)); }
template <typename T> __device__ inline f64 number(const T* p) { return f64(load(p)); }

template <bool TAKE> __device__ inline i64 offset_of(const Array& array, i64 i) {
    return (TAKE ? __ldcs(array.take + i) : i) * array.stride;
}
template <typename T, bool TAKE> __device__ inline f64 read(const Array& array, i64 i) {
    return number((const T*)array.data + offset_of<TAKE>(array, i));
}
template <typename T, bool TAKE> __device__ inline void write(const Array& array, i64 i, f64 value) {
    store((T*)array.data + offset_of<TAKE>(array, i), T(value));
}

__device__ inline f64 read_slot(const f64* array, i64 i) { return __ldcg(array + i); }
__device__ inline void write_slot(f64* array, i64 i, f64 value) { __stcg(array + i, value); }

// Scalar functions; src/objective/ops.rs has the same ones.

__device__ inline f64 flag(bool condition) { return condition ? 1 : 0; }
__device__ __noinline__ f64 sigmoid(f64 x) {
    f64 e = exp(-fabs(x));
    return (x >= 0 ? 1 : e) / (1 + e);
}
__device__ __noinline__ f64 softplus(f64 x) { return (x > 0 || x != x ? x : 0) + log1p(exp(-fabs(x))); }
__device__ inline f64 log_sigmoid(f64 x) { return -softplus(-x); }
__device__ __noinline__ f64 log1mexp(f64 x) { return x > -LN2 ? log(-expm1(x)) : log1p(-exp(x)); }
__device__ inline f64 relu(f64 x) { return x <= 0 ? 0 : x; }
__device__ inline f64 sign(f64 x) { return flag(x > 0) - flag(x < 0); }
__device__ inline f64 square(f64 x) { return x * x; }
__device__ inline f64 maximum(f64 a, f64 b) { return a > b || a != a ? a : b; }
__device__ inline f64 minimum(f64 a, f64 b) { return a < b || a != a ? a : b; }
__device__ inline f64 scale_or_zero(f64 adjoint, f64 x) { return adjoint == 0 ? 0 : adjoint * x; }

// Reductions.

__device__ inline f64 from_lane(f64 x, int distance) { return __shfl_xor_sync(0xffffffffu, x, distance); }

struct Sum {
    f64 total = 0;
    __device__ void add(f64 x) { total += x; }
    __device__ void merge(const Sum& other) { total += other.total; }
    __device__ Sum across(int distance) const { Sum s; s.total = from_lane(total, distance); return s; }
    __device__ f64 value() const { return total; }
};

struct Max {  // NaN if there is one
    f64 max = -infinity<f64>();
    __device__ void add(f64 x) { max = x > max || x != x ? x : max; }
    __device__ void merge(const Max& other) { add(other.max); }
    __device__ Max across(int distance) const { Max m; m.max = from_lane(max, distance); return m; }
    __device__ f64 value() const { return max; }
};

struct Min {
    f64 min = infinity<f64>();
    __device__ void add(f64 x) { min = x < min || x != x ? x : min; }
    __device__ void merge(const Min& other) { add(other.min); }
    __device__ Min across(int distance) const { Min m; m.min = from_lane(min, distance); return m; }
    __device__ f64 value() const { return min; }
};

struct LogSumExp {  // log(e^max * sum)
    f64 max = -infinity<f64>(), sum = 0;
    __device__ static f64 weight(f64 x, f64 max) { return x == max ? 1 : exp(x - max); }
    __device__ void add(f64 x) {
        f64 higher = x > max ? x : max;
        sum = sum * weight(max, higher) + weight(x, higher);
        max = higher;
    }
    __device__ void merge(const LogSumExp& other) {
        f64 higher = other.max > max ? other.max : max;
        sum = sum * weight(max, higher) + other.sum * weight(other.max, higher);
        max = higher;
    }
    __device__ LogSumExp across(int distance) const {
        LogSumExp l;
        l.max = from_lane(max, distance), l.sum = from_lane(sum, distance);
        return l;
    }
    __device__ f64 value() const { return sum != sum ? sum : fabs(max) == infinity<f64>() ? max : max + log(sum); }
};

__device__ inline f64* between_warps() {
    __shared__ f64 numbers[2 * WARPS];
    return numbers;
}

struct Team {
    bool wide;  // the block, not a warp
    i64 rank, size;

    __device__ explicit Team(bool wide) : wide(wide), rank(wide ? threadIdx.x : threadIdx.x % 32), size(wide ? THREADS : 32) {}

    // What all threads of the team have accumulated; complete in the thread of rank 0.
    template <typename T> __device__ __noinline__ T reduced(T mine) const {
#pragma unroll 1
        for (int distance = 16; distance; distance /= 2) mine.merge(mine.across(distance));
        if (!wide) return mine;
        T* shared = (T*)between_warps();
        if (rank % 32 == 0) shared[rank / 32] = mine;
        __syncthreads();
#pragma unroll 1
        for (int warp = 1; warp < WARPS && rank == 0; warp++) mine.merge(shared[warp]);
        __syncthreads();
        return mine;
    }
};

// Calls body(s, range(s), team) for each of `count` segments; a warp works alone on at most `warp_limit` elements.
template <typename Ranges, typename Body>
__device__ inline void each_segment(i64 count, i64 warp_limit, const Ranges& range, const Body& body) {
    const i64 batch = max_i64(1, min_i64(WARPS, (count + gridDim.x - 1) / gridDim.x));
    const int warp = threadIdx.x / 32;
    for (i64 base = blockIdx.x * batch; base < count; base += gridDim.x * batch) {
#pragma unroll 1
        for (int pass = -1; pass < batch; pass++) {  // first a segment to every warp, then the long ones, one by one
            const bool wide = pass >= 0;
            const i64 s = base + (wide ? pass : warp);
            if (s >= count || (!wide && warp >= batch)) continue;
            const Range r = range(s);
            if (wide != (r.end - r.begin > warp_limit)) continue;
            body(s, r, Team(wide));
        }
    }
}

__device__ inline i64 chunks(i64 count) { return (count + CHUNK_LENGTH - 1) / CHUNK_LENGTH; }
template <typename Body> __device__ inline void each_chunk(i64 count, const Body& body) {
    each_segment(chunks(count), -1, [&](i64 c) { return Range{c * CHUNK_LENGTH, min_i64(count, (c + 1) * CHUNK_LENGTH)}; }, body);
}

template <typename Body> __device__ inline void each_element(i64 count, const Body& body) {
    for (i64 i = i64(blockIdx.x) * THREADS + threadIdx.x; i < count; i += i64(gridDim.x) * THREADS) body(opaque(i));
}

// For what is one number: by one thread of the first block.
template <typename Body> __device__ inline void by_one_thread(const Body& body) {
    if (blockIdx.x == 0 && threadIdx.x == 0) body();
}
// The partial(c) of all chunks c merged, by one warp of the first block.
template <typename T, typename Partial> __device__ inline T reduce_chunks(int warp, i64 count, const Partial& partial) {
    T total;
    if (blockIdx.x == 0 && threadIdx.x / 32 == warp % WARPS) {
        const Team team(false);
#pragma unroll 1
        for (i64 c = team.rank; c < chunks(count); c += team.size) total.merge(partial(c));
        total = team.reduced(total);
    }
    return total;
}
__device__ inline bool is_leader(int warp) { return blockIdx.x == 0 && threadIdx.x == 32 * (warp % WARPS); }

// Scans: out[t] = value[t] + factor[t] * out[t - 1], or value[t] where a step resets.

struct Affine {
    f64 value, factor;
    bool reset;
    __device__ f64 applied_to(f64 carry) const { return reset ? value : value + factor * carry; }
};

// The steps of all lanes up to its own, composed into one.
__device__ inline Affine inclusive_scan(Affine step) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int distance = 1; distance < 32; distance *= 2) {
        f64 value = __shfl_up_sync(0xffffffffu, step.value, distance);
        f64 factor = __shfl_up_sync(0xffffffffu, step.factor, distance);
        int reset = __shfl_up_sync(0xffffffffu, int(step.reset), distance);
        if (lane < distance) continue;
        step.value = step.applied_to(value), step.factor *= factor, step.reset = step.reset || reset;
    }
    return step;
}

// put(i, out) for the elements of a segment, by one warp; step(i, first) is called once per element, in order.
template <typename Steps, typename Put>
__device__ inline void scan(Range r, bool reverse, const Steps& step, const Put& put) {
    f64 carry = 0;
#pragma unroll 1
    for (i64 base = 0; base < r.end - r.begin; base += 32) {
        const i64 t = base + threadIdx.x % 32, i = reverse ? r.end - 1 - t : r.begin + t;
        const bool live = t < r.end - r.begin;
        const f64 out = inclusive_scan(live ? step(i, t == 0) : Affine{0, 0, false}).applied_to(carry);
        if (live) put(i, out);
        carry = __shfl_sync(0xffffffffu, out, 31);
    }
}

// Order. NaN comes last in either direction, equal keys keep their order.

__device__ inline bool sorts_before(f64 a, f64 b, bool descending) {
    if (a != a || b != b) return b != b && a == a;
    return descending ? a > b : a < b;
}
// The sorted rank (from 0) of element i in its segment. Every pair is compared: meant for segments of some thousands.
template <typename Keys> __device__ inline i64 sorted_rank(Range r, i64 i, bool descending, const Keys& key) {
    const f64 mine = key(i);
    i64 rank = 0;
    for (i64 j = r.begin; j < r.end; j++) {
        const f64 other = key(j);
        rank += sorts_before(other, mine, descending) || (j < i && !sorts_before(mine, other, descending));
    }
    return rank;
}

// An element whose index is a number in the workspace.
__device__ inline i64 element(f64 index, i64 count) { return max_i64(0, min_i64(i64(index), count - 1)); }

// Pairs: the ordered pairs of a segment of K elements are K rows of K.

struct PairBlock { i64 first, size, base; };  // the elements' first, K, the first pair
__device__ inline PairBlock pair_block(const Space& elements, const Space& pairs, i64 p) {
    Range r = segment(elements, p);
    return {r.begin, r.end - r.begin, start(pairs, p)};
}

// offsets[p] = sum of K^2 over the segments before p, for p up to `segments`; by the first block.
__device__ inline void count_pairs(i64* offsets, const Space& elements, i64 segments) {
    if (blockIdx.x) return;
    __shared__ i64 sums[THREADS];
    i64 carry = 0;
    for (i64 base = 0; base <= segments; base += THREADS) {
        const i64 p = base + threadIdx.x;
        Range r = p < segments ? segment(elements, p) : Range{0, 0};
        const i64 pairs = (r.end - r.begin) * (r.end - r.begin);
        sums[threadIdx.x] = pairs;
        __syncthreads();
        for (int distance = 1; distance < THREADS; distance *= 2) {
            const i64 lower = int(threadIdx.x) >= distance ? sums[threadIdx.x - distance] : 0;
            __syncthreads();
            sums[threadIdx.x] += lower;
            __syncthreads();
        }
        if (p <= segments) __stcg(offsets + p, carry + sums[threadIdx.x] - pairs);
        carry += sums[THREADS - 1];
        __syncthreads();
    }
}

#endif
