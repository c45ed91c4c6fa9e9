// Products of 16-bit matrices on tensor cores: c[m, n] = Σ_k a[m, k]·b[k, n] for ROWS × COLUMNS numbers of a block, added up in float32.
// From sm_80 on. Included by columns_to_input.cu and columns_to_weight.cu.
//
// Traffic: each operand is read once per block, DEPTH of k at a time, STAGES − 1 steps ahead, into dynamic shared memory (cp.async). It lies
// there in units of 16 bytes, at places where the eight that an instruction reads at once are in different banks.
// Of the 8 warps of a block each has 64 × 64 of the result: 32 products of 16 × 8 × 16 for 8 reads of shared memory.
//
// Compile-time constants: NUMBER  element type (f16 bf16)

#ifndef PREFUSE_PRODUCTS_CUH
#define PREFUSE_PRODUCTS_CUH

#include "units.cuh"

constexpr int THREADS = 256;
constexpr int ROWS = 256, COLUMNS = 128, DEPTH = 32, STAGES = 4, WARP_TILE = 64, WARPS_ACROSS = COLUMNS / WARP_TILE;
constexpr int IN_UNIT = 16 / sizeof(NUMBER), UNIT_BYTES = 16;

// Where the units of an operand lie in its stage, and which of them a thread brings: EACH, the first at `row` and `unit`, the others APART
// rows apart. Rows that are 16 apart have their units at the same places.

// An operand with SIZE of m (or n) along its rows: [DEPTH, SIZE].
template <int SIZE> struct Across {
    static constexpr int IN_ROW = SIZE / IN_UNIT, BYTES = DEPTH * IN_ROW * UNIT_BYTES, EACH = DEPTH * IN_ROW / THREADS, APART = DEPTH / EACH;
    __device__ static int place(int k, int unit) { return (k * IN_ROW + (unit ^ (k & 7))) * UNIT_BYTES; }
    __device__ static int row() { return int(threadIdx.x) / IN_ROW; }
    __device__ static int unit() { return int(threadIdx.x) % IN_ROW; }
};
// One with k along its rows: [SIZE, DEPTH].
template <int SIZE> struct Along {
    static constexpr int IN_ROW = DEPTH / IN_UNIT, BYTES = SIZE * IN_ROW * UNIT_BYTES, EACH = SIZE * IN_ROW / THREADS, APART = SIZE / EACH;
    __device__ static int place(int m, int unit) { return (m * IN_ROW + (unit ^ (m >> 1 & 3))) * UNIT_BYTES; }
    __device__ static int row() { return int(threadIdx.x) / IN_ROW; }
    __device__ static int unit() { return int(threadIdx.x) % IN_ROW; }
};
typedef Across<COLUMNS> Right;
constexpr int LEFT_BYTES = ROWS * DEPTH / IN_UNIT * UNIT_BYTES, STAGE_BYTES = LEFT_BYTES + Right::BYTES;  // b behind a

__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, f16) {
    multiply_add_f16(c, a, b0, b1);
}
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bf16) {
    multiply_add_bf16(c, a, b0, b1);
}

// Where a lane reads the first stage; other pieces of 16 numbers, and other stages, are constants away.
template <bool ACROSS> struct Reads {
    Shared a[ACROSS ? 4 : 2], b[4];

    __device__ explicit Reads(Shared stages) {
        const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
        const int m = warp / WARPS_ACROSS * WARP_TILE, n = warp % WARPS_ACROSS * WARP_TILE;
#pragma unroll
        for (int i = 0; i < (ACROSS ? 4 : 2); i++)
            a[i] = stages + (ACROSS ? Across<ROWS>::place(lane % 8 + lane / 16 * 8, (m + 16 * i) / IN_UNIT + lane / 8 % 2)
                                    : Along<ROWS>::place(m + lane % 16, 16 * i / IN_UNIT + lane / 16));
#pragma unroll
        for (int j = 0; j < 4; j++) b[j] = stages + LEFT_BYTES + Right::place(lane % 16, (n + 16 * j) / IN_UNIT + lane / 16);
    }
    // Rows (columns) of piece i (j) of the warp's, in step k of 16.
    __device__ void left(unsigned (&x)[4], int offset, int i, int k) const {
        if (ACROSS) load_transposed(x, a[i] + offset + Across<ROWS>::place(16 * k, 0));
        else load_matrices(x, a[k] + offset + Along<ROWS>::place(16 * i, 0));
    }
    __device__ void right(unsigned (&x)[4], int offset, int j, int k) const { load_transposed(x, b[j] + offset + Right::place(16 * k, 0)); }
};

// A thread's share of the result: in each of 4 × 8 pieces of 16 × 8 two pairs, 8 rows apart.
struct Sums {
    float of[4][8][4];

    // Where they are in the tile.
    __device__ static int row(int i, int half) {
        return int(threadIdx.x) / 32 / WARPS_ACROSS * WARP_TILE + 16 * i + 8 * half + int(threadIdx.x) % 32 / 4;
    }
    __device__ static int column(int j) { return int(threadIdx.x) / 32 % WARPS_ACROSS * WARP_TILE + 8 * j + int(threadIdx.x) % 4 * 2; }

    // Adds the product of the stage that lies `offset` bytes behind the first.
    template <bool ACROSS> __device__ void add(const Reads<ACROSS>& reads, int offset) {
#pragma unroll
        for (int k = 0; k < DEPTH / 16; k++) {
            unsigned left[4][4], right[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) reads.left(left[i], offset, i, k), reads.right(right[i], offset, i, k);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) multiply_add(of[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1], NUMBER());
        }
    }
};

// The product of `steps` stages, each of which `operands.bring(offset)` asks for when its turn comes.
template <bool ACROSS, typename Operands> __device__ inline void multiply(Sums& sums, Shared stages, Operands& operands, int steps) {
    const Reads<ACROSS> reads(stages);
    sums = {};
    __syncthreads();  // nobody reads what is there
#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) operands.bring(s * STAGE_BYTES);
        copies_end();
    }
    int offset = 0;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();  // all have come, and the stage before is free
        if (step + STAGES - 1 < steps) operands.bring((offset == 0 ? STAGES * STAGE_BYTES : offset) - STAGE_BYTES);
        copies_end();
        sums.add(reads, offset);
        offset = offset == (STAGES - 1) * STAGE_BYTES ? 0 : offset + STAGE_BYTES;
    }
}

__device__ inline void load_pair(float (&x)[2], const float* p) {
    const uint2 words = __ldcs((const uint2*)p);
    x[0] = __uint_as_float(words.x), x[1] = __uint_as_float(words.y);
}
__device__ inline void store_pair(float* p, float x, float y) { __stcs((uint2*)p, make_uint2(__float_as_uint(x), __float_as_uint(y))); }

#endif
