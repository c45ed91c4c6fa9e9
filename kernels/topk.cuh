// The k ≤ 64 largest elements that a warp has seen, sorted in its registers: largest first, lane l holds ranks l and 32 + l.
// Used by rows_forward for the mass and the entropy of the top k.
//
// Cost: no memory but the final merge of a block's warps (2 or 4 KiB of shared memory). Most elements fail one comparison and a vote;
// an insertion costs about fifteen instructions, and there are about k·(1 + log(n/k)) of them among n elements in random order.
// The whole warp has to be converged. NaN is never inserted.

#ifndef PREFUSE_TOPK_CUH
#define PREFUSE_TOPK_CUH

#include "rows.cuh"

struct TopK {
    A upper, lower;  // ranks 0 to 31, and 32 to 63
    A kth_largest;  // only larger elements matter

    __device__ void insert(A x, int k) {
        constexpr unsigned ALL = 0xffffffffu;
        int lane = threadIdx.x % 32;
        int rank = __popc(__ballot_sync(ALL, upper >= x)) + __popc(__ballot_sync(ALL, lower >= x));
        A above = __shfl_up_sync(ALL, upper, 1), above_lower = __shfl_up_sync(ALL, lower, 1);
        A last_upper = __shfl_sync(ALL, upper, 31);
        if (lane == 0) above_lower = last_upper;
        if (lane >= rank) upper = lane == rank ? x : above;
        if (lane + 32 >= rank) lower = lane + 32 == rank ? x : above_lower;
        A kth_upper = __shfl_sync(ALL, upper, (k - 1) % 32), kth_lower = __shfl_sync(ALL, lower, (k - 1) % 32);
        kth_largest = k <= 32 ? kth_upper : kth_lower;
    }
    // Takes one element from each lane.
    __device__ void push(A x, int k) {
        unsigned waiting = __ballot_sync(0xffffffffu, x > kth_largest);
        while (waiting) {
            int from = __ffs(int(waiting)) - 1;
            insert(__shfl_sync(0xffffffffu, x, from), k);
            waiting &= waiting - 1;
            waiting &= __ballot_sync(0xffffffffu, x > kth_largest);
        }
    }
};

__device__ inline TopK empty_topk() { return {-infinity<A>(), -infinity<A>(), -infinity<A>()}; }

// Merges the lists of a block's warps into warp 0's. Every thread of the block must call it.
__device__ inline void merge_topk(TopK& topk, int k) {
    __shared__ A lists[THREADS / 32][MAX_K];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    lists[warp][lane] = topk.upper, lists[warp][32 + lane] = topk.lower;
    __syncthreads();
    if (warp == 0)
        for (int other = 1; other < THREADS / 32; other++)
            for (int rank = 0; rank < k && lists[other][rank] > topk.kth_largest; rank++) topk.insert(lists[other][rank], k);
    __syncthreads();  // the lists are free for the next row
}

#endif
