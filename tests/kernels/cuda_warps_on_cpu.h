// For kernels whose warps multiply matrices; comes after cuda_on_cpu.h and before the kernel. The threads of a block
// are fibers. They take turns: each runs until it waits, for the rest of its warp or of its block.
#include <ucontext.h>

#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
enum { MOST_THREADS = 256 };
static ucontext_t scheduler, fibers[MOST_THREADS];
static char stacks[MOST_THREADS][1 << 16];
static bool done[MOST_THREADS];
struct Meeting { unsigned arrived, passed; };
static Meeting block_meeting, warp_meetings[MOST_THREADS / 32];
struct Offer { unsigned a[4], b[2]; };
static Offer offers[MOST_THREADS];  // what a thread shows the others of its warp
static void (*kernel_of)(const void*);
static const void* arguments_of;

static void meet(Meeting& meeting, unsigned members) {
    const unsigned passed = meeting.passed;
    if (++meeting.arrived == members) meeting.arrived = 0, ++meeting.passed;
    while (meeting.passed == passed) swapcontext(&fibers[threadIdx.x], &scheduler);
}
static void meet_warp() { meet(warp_meetings[threadIdx.x / 32], 32); }
static void __syncthreads() { meet(block_meeting, blockDim.x); }
static void fiber() {
    kernel_of(arguments_of);
    done[threadIdx.x] = true;
    swapcontext(&fibers[threadIdx.x], &scheduler);
}
static void every_warp(void (*kernel)(const void*), const void* arguments, unsigned blocks, unsigned threads) {
    kernel_of = kernel, arguments_of = arguments, blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        for (unsigned t = 0; t < threads; ++t) {
            getcontext(&fibers[t]);
            fibers[t].uc_stack.ss_sp = stacks[t], fibers[t].uc_stack.ss_size = sizeof stacks[t], done[t] = false;
            makecontext(&fibers[t], fiber, 0);
        }
        for (unsigned left = threads; left;) {
            left = 0;
            for (unsigned t = 0; t < threads; ++t) {
                threadIdx.x = t;
                if (!done[t]) swapcontext(&scheduler, &fibers[t]);
                left += !done[t];
            }
        }
    }
}

static unsigned __shfl_xor_sync(unsigned, unsigned v, int other) {
    offers[threadIdx.x].a[0] = v;
    meet_warp();
    v = offers[threadIdx.x ^ other].a[0];
    meet_warp();
    return v;
}
static unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned made = 0;
    for (int n = 0; n < 4; ++n) made |= (unsigned)(bytes >> 8 * (selector >> 4 * n & 7) & 255) << 8 * n;
    return made;
}

// 16-bit numbers by their name in PTX. Of finite numbers.
static bool is_bf16(const char* type) { return type[0] == 'b'; }
static float number(const char* type, unsigned v) {
    if (is_bf16(type)) return bits<float>(v << 16);
    return std::copysign(bits<float>((v & 0x7fffu) << 13) * 0x1p112f, v & 0x8000 ? -1.0f : 1.0f);
}
static unsigned nearest(const char* type, float v) {  // to nearest even
    if (is_bf16(type)) {
        const unsigned b = bits<unsigned>(v);
        return (b + 0x7fffu + (b >> 16 & 1)) >> 16;
    }
    const unsigned sign = bits<unsigned>(v) >> 16 & 0x8000u;
    const float size = std::fabs(v);
    if (size < 0x1p-14f) return sign | (unsigned)std::nearbyint(size * 0x1p24f);
    const unsigned b = bits<unsigned>(size) - (112u << 23);
    return sign | (b + 0xfffu + (b >> 13 & 1)) >> 13;
}
static unsigned nearest_pair(const char* type, float high, float low) {
    return nearest(type, high) << 16 | nearest(type, low);
}

// mma.m16n8k16: where PTX says that the elements of a, b and c lie.
static void mma(const char* type, float* c, const unsigned* a, unsigned b0, unsigned b1) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x - lane;
    offers[threadIdx.x] = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    meet_warp();
    for (unsigned e = 0; e < 4; ++e) {
        const unsigned row = lane / 4 + 8 * (e / 2), column = lane % 4 * 2 + e % 2;
        double sum = c[e];
        for (unsigned k = 0; k < 16; ++k) {
            const Offer& left = offers[warp + row % 8 * 4 + k % 8 / 2];
            const Offer& right = offers[warp + column * 4 + k % 8 / 2];
            sum += (double)number(type, left.a[row / 8 + 2 * (k / 8)] >> 16 * (k % 2) & 0xffff) *
                   number(type, right.b[k / 8] >> 16 * (k % 2) & 0xffff);
        }
        c[e] = (float)sum;
    }
    meet_warp();
}
