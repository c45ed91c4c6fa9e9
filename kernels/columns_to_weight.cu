// Adds what the gathered columns of one strip give the weight to the float32 sum of its gradient, where it belongs:
//
//   sum[columns[k], :] += Σ_r values[r, k]·inputs[r, :]
//
// No two columns are equal, and strips come one after the other: nothing is lost without atomics, and every sum has the same bits at every
// run.
//
// Traffic: the rows of the sum that have columns are read and written; probabilities and inputs come from the second-level cache but for the
// first time.
// A block takes ROWS columns and COLUMNS features.

#include "products.cuh"

struct ToWeightArgs {
    f32* sum;              // [V, size], rows `stride` apart
    const NUMBER* values;  // [rows, count]
    const i64* columns;    // [count], a multiple of IN_UNIT; −1: none
    const NUMBER* inputs;  // [rows, size]
    i64 rows, count, size, stride;
};

typedef Across<ROWS> Left;

// Where the thread's units come from, and go: of both operands the same row.
struct Operands {
    Shared a, b;
    const NUMBER *values, *inputs;
    i64 count, size;
    int left_rows, right_rows;  // that are there from the thread's first units of the next step on
    bool column, feature;

    __device__ Operands(Shared stages, const ToWeightArgs& of, i64 begin, i64 first)
        : a(stages + Left::place(Left::row(), Left::unit())), b(stages + LEFT_BYTES + Right::place(Right::row(), Right::unit())),
          values(of.values), inputs(of.inputs), count(of.count), size(of.size), left_rows(int(of.rows) - Left::row()),
          right_rows(int(of.rows) - Right::row()), column(begin + Left::unit() * IN_UNIT < of.count),
          feature(first + Right::unit() * IN_UNIT < of.size) {
        if (column && left_rows > 0) values += Left::row() * count + begin + Left::unit() * IN_UNIT;
        if (feature && right_rows > 0) inputs += Right::row() * size + first + Right::unit() * IN_UNIT;
    }
    __device__ void bring(int offset) {
#pragma unroll
        for (int u = 0; u < Left::EACH; u++) {
            const bool there = column && u * Left::APART < left_rows;
            copy_later(a + offset + Left::place(u * Left::APART, 0), there ? values + u * Left::APART * count : values, there);
        }
#pragma unroll
        for (int u = 0; u < Right::EACH; u++) {
            const bool there = feature && u * Right::APART < right_rows;
            copy_later(b + offset + Right::place(u * Right::APART, 0), there ? inputs + u * Right::APART * size : inputs, there);
        }
        left_rows -= DEPTH, right_rows -= DEPTH;
        if (column && left_rows > 0) values += DEPTH * count;
        if (feature && right_rows > 0) inputs += DEPTH * size;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) columns_to_weight(const ToWeightArgs a) {
    const Shared stages = shared_address(dynamic_shared());
    const i64 across = (a.size + COLUMNS - 1) / COLUMNS, down = (a.count + ROWS - 1) / ROWS;
    for (i64 item = blockIdx.x; item < down * across; item += gridDim.x) {
        const i64 begin = item / across * ROWS, first = item % across * COLUMNS;
        const int columns = int(a.count - begin < ROWS ? a.count - begin : ROWS);
        const int features = int(a.size - first < COLUMNS ? a.size - first : COLUMNS);
        Operands operands(stages, a, begin, first);
        Sums sums;
        multiply<true>(sums, stages, operands, int((a.rows + DEPTH - 1) / DEPTH));
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int k = Sums::row(i, half);
                const i64 column = k < columns ? __ldcs(a.columns + begin + k) : -1;
                if (column < 0) continue;
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    if (Sums::column(j) >= features) continue;
                    f32* own = a.sum + column * a.stride + first + Sums::column(j);
                    float before[2];
                    load_pair(before, own);
                    store_pair(own, before[0] + sums.of[i][j][2 * half], before[1] + sums.of[i][j][2 * half + 1]);
                }
            }
    }
}
