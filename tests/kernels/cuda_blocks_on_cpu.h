// For kernels whose threads share memory and wait for each other; comes after cuda_on_cpu.h and before the kernel. The
// threads of a block are fibers that take turns, each from one barrier to the next; a shuffle is two barriers.
#include <ucontext.h>

#define __shared__ static
enum { MOST_THREADS = 256 };
static ucontext_t scheduler, fibers[MOST_THREADS];
static char stacks[MOST_THREADS][1 << 15];
static bool done[MOST_THREADS];
static long long exchanged[MOST_THREADS];
static void (*kernel_of)(const void*);
static const void* arguments_of;

static void barrier() { swapcontext(&fibers[threadIdx.x], &scheduler); }
static void fiber() {
    kernel_of(arguments_of);
    done[threadIdx.x] = true;
    barrier();
}
static void every_block(void (*kernel)(const void*), const void* arguments, unsigned blocks, unsigned threads) {
    kernel_of = kernel, arguments_of = arguments, blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        for (unsigned t = 0; t < threads; ++t) {
            getcontext(&fibers[t]);
            fibers[t].uc_stack.ss_sp = stacks[t], fibers[t].uc_stack.ss_size = sizeof stacks[t], done[t] = false;
            makecontext(&fibers[t], fiber, 0);
        }
        while (!done[0])  // all threads pass the same barriers, so all are done together
            for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) swapcontext(&scheduler, &fibers[threadIdx.x]);
    }
}

static void __syncthreads() { barrier(); }
static bool __syncthreads_or(bool v) {
    exchanged[threadIdx.x] = v;
    barrier();
    bool any = false;
    for (unsigned t = 0; t < blockDim.x; ++t) any |= exchanged[t];
    barrier();
    return any;
}
static long long __shfl_down_sync(unsigned, long long v, int offset) {
    const unsigned from = threadIdx.x + offset;
    exchanged[threadIdx.x] = v;
    barrier();
    v = from / 32 == threadIdx.x / 32 ? exchanged[from] : v;
    barrier();
    return v;
}
template <class N> static N atomicAdd(N* to, N n) { return *to += n, *to - n; }
template <class N> static N atomicCAS(N* to, N old, N n) { return *to == old ? *to = n, old : *to; }
static int __ffs(unsigned v) { return __builtin_ffs(v); }
static long long __double_as_longlong(double v) { return bits<long long>(v); }

// What stands in for the conversion instruction; of finite numbers.
static float finite_half(unsigned short v) {
    return std::copysign(bits<float>((v & 0x7fffu) << 13) * 0x1p112f, v & 0x8000 ? -1.0f : 1.0f);
}
