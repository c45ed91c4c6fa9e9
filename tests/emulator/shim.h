// CUDA C++ as plain C++: what kernels/*.cu need to be compiled for the CPU. How their threads run is in runtime.cpp.

#include <cmath>
#include <cstdint>
#include <cstring>

struct uint2 { unsigned x, y; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
struct uint4 { unsigned x, y, z, w; };
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <typename To, typename From> static To bits_as(From x) {
    To y;
    static_assert(sizeof x == sizeof y, "same size");
    memcpy(&y, &x, sizeof y);
    return y;
}

namespace emulator {

struct Index { unsigned x; };
extern Index block_index, grid_size, block_size;
Index thread_index();

bool may_read(uintptr_t address, unsigned size);   // and complain if not
bool may_write(uintptr_t address, unsigned size);
void barrier(const char* place);  // a place is a file and a line
const uint64_t* exchange(unsigned mask, uint64_t bits, const char* place);  // what each lane of the warp brought
void arrive_in_cluster();
void wait_in_cluster();
void* dynamic_shared();
void* in_block(void* p, unsigned rank);  // where the block of that rank has what this one has at p
void copy_into_shared(uintptr_t to, const void* from, bool there);  // 16 bytes, when they are waited for
void end_copies();
void wait_for_copies(unsigned left);
void read_matrices(unsigned (&x)[4], uintptr_t row, bool transposed, const char* place);
void add_product(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, float widen(unsigned short), const char* place);
// Blocks [first, end) of a grid, in clusters of `size`, with `shared` bytes of dynamic shared memory each.
void run_grid(void (*kernel)(), unsigned grid, unsigned threads, unsigned first, unsigned end, int order, unsigned size = 1,
              unsigned shared = 0);

template <typename T> T load(const T* p) { return may_read(uintptr_t(p), sizeof(T)) ? *p : T(); }
template <typename T> void store(T* p, T value) {
    if (may_write(uintptr_t(p), sizeof(T))) *p = value;
}

template <typename T> T shuffle(unsigned mask, T value, int from, const char* place) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    const uint64_t* lanes = exchange(mask, bits, place);
    memcpy(&value, &lanes[from < 0 || from > 31 ? thread_index().x % 32 : from], sizeof value);
    return value;
}

static unsigned ballot(unsigned mask, bool vote, const char* place) {
    const uint64_t* lanes = exchange(mask, vote, place);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; lane++) votes |= unsigned(lanes[lane]) << lane;
    return votes;
}

}  // namespace emulator

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define __noinline__
#define __shared__ static __attribute__((section("emulated_shared")))
#define inline static  // so that shared arrays in functions get a plain section

#define threadIdx emulator::thread_index()
#define blockIdx emulator::block_index
#define gridDim emulator::grid_size
#define blockDim emulator::block_size

#define __ldcs emulator::load
#define __stcs(p, v) emulator::store(p, v)
#define __ldcg emulator::load
#define __stcg(p, v) emulator::store(p, v)
#define EMULATED_TEXT(x) #x
#define EMULATED_LINE(x) EMULATED_TEXT(x)
#define EMULATED_PLACE __FILE__ ":" EMULATED_LINE(__LINE__)

#define __syncthreads() emulator::barrier(EMULATED_PLACE)
#define __syncwarp() emulator::exchange(0xffffffffu, 0, EMULATED_PLACE)
#define __shfl_sync(mask, v, from) emulator::shuffle(mask, v, from, EMULATED_PLACE)
#define __shfl_xor_sync(mask, v, d) emulator::shuffle(mask, v, int(threadIdx.x % 32) ^ (d), EMULATED_PLACE)
#define __shfl_up_sync(mask, v, d) emulator::shuffle(mask, v, int(threadIdx.x % 32) - int(d), EMULATED_PLACE)
#define __ballot_sync(mask, vote) emulator::ballot(mask, vote, EMULATED_PLACE)
#define __popc __builtin_popcount
#define __ffs __builtin_ffs

static float __int_as_float(int x) { return bits_as<float>(x); }
static float __uint_as_float(unsigned x) { return bits_as<float>(x); }
static unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
static double __hiloint2double(int high, int low) { return bits_as<double>(uint64_t(unsigned(high)) << 32 | unsigned(low)); }
static int __double2loint(double x) { return int(bits_as<uint64_t>(x)); }
static int __double2hiint(double x) { return int(bits_as<uint64_t>(x) >> 32); }
static unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}

// In the place of kernels/ptx.cuh, whose guard this is.
#define PREFUSE_PTX_CUH
static float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}
static float max_or_nan(float a, float b) { return a != a || b != b ? NAN : fmaxf(a, b); }
static float min_or_nan(float a, float b) { return a != a || b != b ? NAN : fminf(a, b); }
static float f16_to_f32(unsigned short bits) { return float(bits_as<_Float16>(bits)); }
static unsigned short f32_to_f16(float x) { return bits_as<unsigned short>(_Float16(x)); }
static unsigned short f32_to_bf16(float x) {
    unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static unsigned pack_f16(float low, float high) { return unsigned(f32_to_f16(high)) << 16 | f32_to_f16(low); }
static unsigned pack_bf16(float low, float high) { return unsigned(f32_to_bf16(high)) << 16 | f32_to_bf16(low); }
template <float widen(unsigned short), unsigned short narrow(float)> static unsigned max_of_halves(unsigned a, unsigned b) {
    unsigned short low = narrow(fmaxf(widen(a), widen(b))), high = narrow(fmaxf(widen(a >> 16), widen(b >> 16)));
    return unsigned(high) << 16 | low;
}
static float bf16_to_f32(unsigned short bits) { return __uint_as_float(unsigned(bits) << 16); }
static unsigned max_f16x2(unsigned a, unsigned b) { return max_of_halves<f16_to_f32, f32_to_f16>(a, b); }
static unsigned max_bf16x2(unsigned a, unsigned b) { return max_of_halves<bf16_to_f32, f32_to_bf16>(a, b); }
static long long opaque(long long x) { return x; }
static uint4* dynamic_shared() { return static_cast<uint4*>(emulator::dynamic_shared()); }
static void cluster_arrive() { emulator::arrive_in_cluster(); }
static void cluster_wait() { emulator::wait_in_cluster(); }
typedef uintptr_t Shared;
static Shared shared_address(const void* p) { return Shared(p); }
#define copy_later emulator::copy_into_shared
#define copies_end emulator::end_copies
template <int LEFT> static void copies_wait() { emulator::wait_for_copies(LEFT); }
#define load_matrices(x, row) emulator::read_matrices(x, row, false, EMULATED_PLACE)
#define load_transposed(x, row) emulator::read_matrices(x, row, true, EMULATED_PLACE)
#define multiply_add_f16(c, a, b0, b1) emulator::add_product(c, a, b0, b1, f16_to_f32, EMULATED_PLACE)
#define multiply_add_bf16(c, a, b0, b1) emulator::add_product(c, a, b0, b1, bf16_to_f32, EMULATED_PLACE)
template <typename T> static void cluster_store(T* p, unsigned rank, T x) { *static_cast<T*>(emulator::in_block(p, rank)) = x; }
