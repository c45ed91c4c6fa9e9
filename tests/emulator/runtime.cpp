// Runs a grid on the CPU: one cluster (most often a block) after the other, every thread of a cluster a fiber.
//
// A fiber runs until a barrier or a warp collective makes it wait; which runnable fiber goes on is `order`'s choice (0 ascending,
// 1 descending, else shuffled with that seed), so a result that depends on it is a race. Reported besides:
//   - access outside the registered buffers, or to an address that is no multiple of its size; writing to a read-only buffer
//   - two threads writing the same byte, or one reading what another wrote, in one launch
//   - a barrier or warp collective that not all threads reach, or that they reach at different places
//   - writing behind dynamic shared memory; writing that of a block of the cluster that has ended or not begun
// What is copied into shared memory while a thread goes on comes as late as it may, when the thread waits for it.
// Shared memory, and the part of each thread's stack where its variables will lie, are filled with NaN bits before each cluster, so
// that what is read before it is written shows. Static shared memory is one section of the program: while a thread of another block
// runs, a block's lies in a copy.

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <random>
#include <string>
#include <ucontext.h>
#include <unordered_map>
#include <vector>

#include "shim.h"
#undef inline

namespace emulator {

constexpr int WARP = 32;
constexpr size_t STACK = 64 * 1024, POISONED = 8 * 1024;

struct Buffer {
    uintptr_t begin, end;
    int writable;
};

struct Meeting {  // of the lanes of a warp, or of the threads of a block
    unsigned generation = 0, arrived = 0;
    const char* place = "";
    uint64_t values[2][WARP];
};

struct Copy {
    void* to;
    const void* from;  // or nothing: zeros
};

struct Fiber {
    unsigned index, rank;  // of the thread in its block, of the block in its cluster
    bool started, done, arrived;
    const unsigned* awaited;  // the generation that must change before it goes on
    unsigned seen, arrived_at;
    jmp_buf point;
    ucontext_t context;
    std::vector<char> stack;
    std::vector<Copy> copies;
    std::vector<size_t> groups;  // where those end that are under way
};

struct Block {
    Meeting meeting;
    std::vector<Meeting> warps;
    std::vector<char> shared, dynamic;  // its copy of the section; dynamic shared memory and what must not change behind it
};

constexpr size_t BEHIND = 256;
constexpr char UNTOUCHED = 0x5a;

Index block_index, grid_size, block_size;
static std::vector<Fiber> fibers;
static std::vector<Block> blocks;
static unsigned resident, first_block;  // whose shared memory is in the section; the first block of the cluster
static Meeting cluster;
static Fiber* volatile current;  // changes behind the back of every call that waits
static jmp_buf scheduler;
static ucontext_t home;
static std::vector<Buffer> buffers;
static std::unordered_map<uintptr_t, uint64_t> writers;  // by 2-byte cell: which thread wrote it
static bool watch_writes;                                // off for launches too large to keep a map of
static std::string report;
static void (*entry)();

Index thread_index() { return {current->index}; }

static void complain(const char* what, uintptr_t address = 0, unsigned size = 0) {
    if (report.size() > 400) return;
    char line[512];
    int length = snprintf(line, sizeof line, "block %u thread %u: %s", block_index.x, current->index, what);
    if (size) snprintf(line + length, sizeof line - length, " (%u bytes at %#zx)", size, size_t(address));
    report += std::string(line) + "\n";
}

static bool inside(uintptr_t address, unsigned size, bool write) {
    if (address % size) return complain("misaligned access", address, size), false;
    bool known = false;
    for (const Buffer& b : buffers)
        if (address >= b.begin && address + size <= b.end) {
            if (b.writable || !write) return true;
            known = true;
        }
    complain(known ? "write to a read-only buffer" : write ? "write outside every buffer" : "read outside every buffer", address, size);
    return false;
}

static uint64_t identity() { return uint64_t(block_index.x) * block_size.x + current->index + 1; }

// Bytes from one cell of an access to the next: no array is written by bytes and by larger numbers.
static unsigned step(unsigned size) { return size < 2 ? 1 : 2; }

bool may_read(uintptr_t address, unsigned size) {
    if (!inside(address, size, false)) return false;
    for (uintptr_t cell = address; !writers.empty() && cell < address + size; cell += step(size)) {
        auto writer = writers.find(cell);
        if (writer != writers.end() && writer->second != identity()) complain("reads what another thread wrote", address, size);
    }
    return true;
}

bool may_write(uintptr_t address, unsigned size) {
    if (!inside(address, size, true)) return false;
    for (uintptr_t cell = address; watch_writes && cell < address + size; cell += step(size)) {
        uint64_t& writer = writers[cell];
        if (writer && writer != identity()) complain("writes what another thread wrote", address, size);
        writer = identity();
    }
    return true;
}

static void leave() {
    if (_setjmp(current->point) == 0) _longjmp(scheduler, 1);
}

// Waits until `size` threads have come; returns the slot in which this meeting's values stand.
static int meet(Meeting& m, unsigned size, const char* place) {
    int slot = m.generation & 1;
    if (m.arrived == 0) m.place = place;
    if (strcmp(m.place, place) != 0) {
        std::string what = std::string("comes to ") + place + " while others wait at " + m.place + ", a different barrier or collective";
        complain(what.c_str());
    }
    if (++m.arrived == size) {
        m.arrived = 0;
        m.generation++;
    } else {
        current->awaited = &m.generation;
        current->seen = m.generation;
        leave();
    }
    return slot;
}

void barrier(const char* place) {
    // Behind a barrier a block sees what its own threads wrote; of other blocks' writes it must know nothing.
    Meeting& m = blocks[current->rank].meeting;
    if (grid_size.x == 1 && m.arrived + 1 == block_size.x) writers.clear();
    meet(m, block_size.x, place);
}

void arrive_in_cluster() {
    if (current->arrived) complain("arrives twice at the barrier of its cluster");
    current->arrived = true;
    current->arrived_at = cluster.generation;
    if (++cluster.arrived == fibers.size()) cluster.arrived = 0, cluster.generation++;
}

void wait_in_cluster() {
    if (!current->arrived) return complain("waits at the barrier of its cluster without having arrived");
    current->arrived = false;
    if (cluster.generation != current->arrived_at) return;
    current->awaited = &cluster.generation;
    current->seen = current->arrived_at;
    leave();
}

const uint64_t* exchange(unsigned mask, uint64_t bits, const char* place) {
    if (mask != 0xffffffffu) complain("collective of a part of a warp");
    Meeting& w = blocks[current->rank].warps[current->index / WARP];
    w.values[w.generation & 1][current->index % WARP] = bits;
    int slot = meet(w, WARP, place);
    return w.values[slot];
}

void copy_into_shared(uintptr_t to, const void* from, bool there) {
    if (to % 16) complain("copies to a misaligned place", to, 16);
    if (uintptr_t(from) % 16) complain("misaligned access", uintptr_t(from), 16);
    bool may = there && may_read(uintptr_t(from), 16);
    current->copies.push_back({(void*)to, may ? from : nullptr});
}

void end_copies() { current->groups.push_back(current->copies.size()); }

void wait_for_copies(unsigned left) {
    std::vector<size_t>& groups = current->groups;
    if (groups.size() <= left) return;
    size_t ended = groups.size() - left, count = groups[ended - 1];
    std::vector<Copy>& copies = current->copies;
    for (size_t i = 0; i < count; i++) {
        if (copies[i].from) memcpy(copies[i].to, copies[i].from, 16);
        else memset(copies[i].to, 0, 16);
    }
    copies.erase(copies.begin(), copies.begin() + count);
    groups.erase(groups.begin(), groups.begin() + ended);
    for (size_t& end : groups) end -= count;
}

// What each lane of the warp brought, for as long as this one needs it.
static std::vector<uint64_t> brought(uint64_t bits, const char* place) {
    const uint64_t* lanes = exchange(0xffffffffu, bits, place);
    return {lanes, lanes + WARP};
}

void read_matrices(unsigned (&x)[4], uintptr_t row, bool transposed, const char* place) {
    if (row % 16) complain("misaligned access", row, 16);
    const std::vector<uint64_t> rows = brought(row, place);
    const unsigned high = current->index % WARP / 4, low = current->index % WARP % 4 * 2;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        auto at = [&](unsigned r, unsigned c) { return ((const unsigned short*)rows[8 * matrix + r])[c]; };
        const unsigned first = transposed ? at(low, high) : at(high, low), second = transposed ? at(low + 1, high) : at(high, low + 1);
        x[matrix] = second << 16 | first;
    }
}

void add_product(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, float widen(unsigned short), const char* place) {
    const std::vector<uint64_t> upper = brought(uint64_t(a[2]) << 32 | a[0], place), lower = brought(uint64_t(a[3]) << 32 | a[1], place);
    const std::vector<uint64_t> right = brought(uint64_t(b1) << 32 | b0, place);
    const unsigned high = current->index % WARP / 4, low = current->index % WARP % 4 * 2;
    // Numbers of a lane of 8 that lie k apart: two of a word, two words a lane.
    auto number = [&](uint64_t word, unsigned k) { return widen(word >> (k / 8 * 32 + k % 2 * 16)); };
    for (unsigned i = 0; i < 4; i++) {
        const std::vector<uint64_t>& left = i < 2 ? upper : lower;
        for (unsigned k = 0; k < 16; k++) {
            const unsigned lane = k % 8 / 2;
            c[i] += number(left[4 * high + lane], k) * number(right[4 * (low + i % 2) + lane], k);
        }
    }
}

static void body() {
    entry();
    current->done = true;
    _longjmp(scheduler, 1);
}

extern "C" char __start_emulated_shared[] __attribute__((weak));
extern "C" char __stop_emulated_shared[] __attribute__((weak));

void* dynamic_shared() { return blocks[current->rank].dynamic.data(); }

void* in_block(void* p, unsigned rank) {
    char* local = static_cast<char*>(p);
    if (rank >= blocks.size()) return complain("writes to the shared memory of a block outside its cluster"), p;
    if (local < __start_emulated_shared || local >= __stop_emulated_shared) return complain("writes to another block's memory, which is not shared"), p;
    bool ended = true, begun = false;
    for (const Fiber& f : fibers) {
        ended = ended && (f.rank != rank || f.done);
        begun = begun || (f.rank == rank && f.started);
    }
    if (ended) complain("writes to the shared memory of a block that has ended");
    if (!begun) complain("writes to the shared memory of a block that has not begun");
    return rank == resident ? local : blocks[rank].shared.data() + (local - __start_emulated_shared);
}

// Brings a block's shared memory into the section.
static void move_in(unsigned rank) {
    block_index.x = first_block + rank;
    if (rank == resident || !__start_emulated_shared) return;
    std::copy(__start_emulated_shared, __stop_emulated_shared, blocks[resident].shared.begin());
    std::copy(blocks[rank].shared.begin(), blocks[rank].shared.end(), __start_emulated_shared);
    resident = rank;
}

static void resume(Fiber& f) {
    current = &f;
    move_in(f.rank);
    if (_setjmp(scheduler)) return;
    if (f.started) _longjmp(f.point, 1);
    f.started = true;
    std::fill(f.stack.end() - POISONED, f.stack.end(), char(0xff));
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = nullptr;
    makecontext(&f.context, body, 0);
    swapcontext(&home, &f.context);
}

// Blocks as they are before they run: all shared memory NaN.
static void prepare(unsigned count, unsigned shared) {
    size_t size = __start_emulated_shared ? __stop_emulated_shared - __start_emulated_shared : 0;
    if (size) std::fill(__start_emulated_shared, __stop_emulated_shared, char(0xff));
    blocks.resize(count);
    for (Block& b : blocks) {
        b.meeting = Meeting();
        b.warps.assign(block_size.x / WARP, Meeting());
        b.shared.assign(size, char(0xff));
        b.dynamic.assign(shared, char(0xff));
        b.dynamic.resize(shared + BEHIND, UNTOUCHED);
    }
    for (unsigned t = 0; t < fibers.size(); t++) {
        Fiber& f = fibers[t];
        f.index = t % block_size.x, f.rank = t / block_size.x;
        f.started = f.done = f.arrived = false;
        f.awaited = nullptr;
        f.copies.clear(), f.groups.clear();
    }
    resident = 0;
    cluster = Meeting();
}

static void run_cluster(int order, unsigned shared, std::mt19937& random) {
    prepare(fibers.size() / block_size.x, shared);
    std::vector<unsigned> turns(fibers.size());
    for (unsigned t = 0; t < turns.size(); t++) turns[t] = order == 1 ? turns.size() - 1 - t : t;
    for (bool moved = true, finished = false; !finished;) {
        if (!moved) return complain("waits for threads that never come (divergent barrier)");
        moved = false, finished = true;
        if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
        for (unsigned t : turns) {
            Fiber& f = fibers[t];
            if (f.done) continue;
            finished = false;
            if (f.awaited && *f.awaited == f.seen) continue;
            f.awaited = nullptr;
            moved = true;
            resume(f);
        }
    }
    for (const Block& b : blocks)
        for (size_t i = shared; i < b.dynamic.size(); i++)
            if (b.dynamic[i] != UNTOUCHED) return complain("a thread wrote behind dynamic shared memory");
}

void run_grid(void (*kernel)(), unsigned grid, unsigned threads, unsigned first, unsigned end, int order, unsigned size, unsigned shared) {
    entry = kernel;
    grid_size.x = grid, block_size.x = threads;
    report.clear(), writers.clear();
    fibers.resize(threads * size);
    for (Fiber& f : fibers) f.stack.resize(STACK);
    std::mt19937 random(order);
    for (unsigned b = 0; b < end - first && report.empty(); b += size) {
        first_block = order == 1 ? end - size - b : first + b;
        run_cluster(order, shared, random);
    }
}

}  // namespace emulator

extern "C" void watch(const emulator::Buffer* buffers, int count, int watch_writes) {
    emulator::buffers.assign(buffers, buffers + count);
    emulator::watch_writes = watch_writes;
}

extern "C" const char* reported() { return emulator::report.c_str(); }
