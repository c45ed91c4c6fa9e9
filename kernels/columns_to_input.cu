// What the gathered columns of strips, and the mean of the rest, give the inputs: for each row r of a strip s
//
//   out[r, :] = factor_r·Σ_k values_s[r, k]·weight[columns_s[k], :] + tail_r·means[s, :]
//
// Traffic: rows of the weight are read where they lie, once for each ROWS rows of a strip; probabilities for each COLUMNS features; the
// result is written once. Blocks that run at the same time take the same features of all strips, so that what strips have in common comes
// from the second-level cache.
// A block takes ROWS rows of a strip and COLUMNS features.

#include "products.cuh"

struct ToInputArgs {
    const NUMBER* values;  // [rows of the strip, its columns] for each strip
    const i64* columns;    // of each strip, a multiple of IN_UNIT, filled up with −1
    const i64* strips;     // [strips, 5]: its first row, behind its last; where its columns begin, behind them; where its values begin
    const NUMBER* weight;  // [V, size], rows `stride` apart, at 16-byte boundaries
    const f32* factors;    // [rows]
    const f32* tails;      // [rows]
    const f32* means;      // [strips, size]
    f32* out;              // [rows, size]
    i64 count, strip_rows, size, stride;
};

typedef Along<ROWS> Left;

// Where the thread's units come from, and go.
struct Operands {
    Shared a, b;
    const NUMBER *values, *weight;
    const i64* columns;  // those of the next step but one, from the thread's row on
    i64 apart, stride;   // numbers between its units of the values, and between rows of the weight
    int rows, rest, listed;  // that are there from its first unit on: rows, columns of the next step, `columns`
    bool feature;
    i64 next[Right::EACH];

    __device__ Operands(Shared stages, const NUMBER* values, const NUMBER* weight, const i64* columns, i64 count, i64 stride, int rows,
                        int features)
        : a(stages + Left::place(Left::row(), Left::unit())), b(stages + LEFT_BYTES + Right::place(Right::row(), Right::unit())),
          values(values + (Left::row() < rows ? Left::row() * count + Left::unit() * IN_UNIT : 0)), weight(weight + Right::unit() * IN_UNIT),
          columns(columns + Right::row()), apart(Left::APART * count), stride(stride), rows(rows - Left::row()),
          rest(int(count) - Left::unit() * IN_UNIT), listed(int(count) - Right::row()), feature(Right::unit() * IN_UNIT < features) {
        look();
    }
    __device__ void look() {
#pragma unroll
        for (int u = 0; u < Right::EACH; u++) next[u] = u * Right::APART < listed ? __ldcs(columns + u * Right::APART) : -1;
        columns += DEPTH, listed -= DEPTH;
    }
    __device__ void bring(int offset) {
#pragma unroll
        for (int u = 0; u < Left::EACH; u++) {
            const bool there = u * Left::APART < rows && rest > 0;
            copy_later(a + offset + Left::place(u * Left::APART, 0), there ? values + u * apart : values, there);
        }
#pragma unroll
        for (int u = 0; u < Right::EACH; u++) {
            const bool there = feature && next[u] >= 0;
            copy_later(b + offset + Right::place(u * Right::APART, 0), weight + (there ? next[u] * stride : 0), there);
        }
        rest -= DEPTH;
        if (rest > 0) values += DEPTH;
        look();
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) columns_to_input(const ToInputArgs a) {
    const Shared stages = shared_address(dynamic_shared());
    const i64 parts = (a.strip_rows + ROWS - 1) / ROWS, down = a.count * parts, across = (a.size + COLUMNS - 1) / COLUMNS;
    for (i64 item = blockIdx.x; item < down * across; item += gridDim.x) {
        const i64 number = item % down / parts, part = item % parts, first = item / down * COLUMNS;
        const i64* strip = a.strips + 5 * number;
        const i64 start = __ldcs(strip + 2), count = __ldcs(strip + 3) - start;
        const i64 begin = __ldcs(strip) + part * ROWS, left = __ldcs(strip + 1) - begin;
        if (left <= 0) continue;
        const int rows = int(left < ROWS ? left : ROWS), features = int(a.size - first < COLUMNS ? a.size - first : COLUMNS);
        const NUMBER* values = a.values + __ldcs(strip + 4) + part * ROWS * count;
        Operands operands(stages, values, a.weight + first, a.columns + start, count, a.stride, rows, features);
        Sums sums;
        multiply<false>(sums, stages, operands, int((count + DEPTH - 1) / DEPTH));
        const f32* means = a.means + number * a.size + first;
        float factors[4][2], tails[4][2];
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = Sums::row(i, half);
                factors[i][half] = row < rows ? load(a.factors + begin + row) : 0;
                tails[i][half] = row < rows ? load(a.tails + begin + row) : 0;
            }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int column = Sums::column(j);
            if (column >= features) continue;
            float mean[2];
            load_pair(mean, means + column);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    if (Sums::row(i, half) >= rows) continue;
                    const float x = fmaf(factors[i][half], sums.of[i][j][2 * half], tails[i][half] * mean[0]);
                    const float y = fmaf(factors[i][half], sums.of[i][j][2 * half + 1], tails[i][half] * mean[1]);
                    store_pair(a.out + (begin + Sums::row(i, half)) * a.size + first + column, x, y);
                }
        }
    }
}
