// The end of every emulated program: blocks [first, end) of the kernel `KERNEL`.

static const void* argument_bytes;

template <typename T> static void invoke(void (*kernel)(T)) { kernel(*static_cast<const T*>(argument_bytes)); }

extern "C" void emulate(const void* argument, unsigned grid, unsigned threads, unsigned cluster, unsigned shared, unsigned first,
                        unsigned end, int order) {
    argument_bytes = argument;
    emulator::run_grid([] { invoke(KERNEL); }, grid, threads, first, end, order, cluster, shared);
}
