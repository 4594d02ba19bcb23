// Spikes to bits and back. Element i of a dense tensor is bit i % 8 of byte i / 8; a thread handles one byte: LOADS
// words of 16 bytes. -0 is no spike: the sign is shifted out. Compiled by NVRTC without any header; defined in front of
// this text: WORD (an unsigned integer as wide as an element), ONE (the bits of 1.0), LOADS.
#define PER_QUAD (16 / (int)sizeof(WORD))
struct __align__(16) Quad { WORD w[PER_QUAD]; };
struct Arguments { WORD* x; unsigned char* bits; long long count; };

extern "C" __global__ void pack(const Arguments a) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i * 8 >= a.count) return;
    unsigned byte = 0;
    if (i * 8 + 8 <= a.count) {
        const Quad* from = (const Quad*)a.x + i * LOADS;
        Quad q[LOADS];
#pragma unroll
        for (int n = 0; n < LOADS; ++n) q[n] = from[n];
#pragma unroll
        for (int n = 0; n < LOADS; ++n)
#pragma unroll
            for (int e = 0; e < PER_QUAD; ++e) byte |= (unsigned)((WORD)(q[n].w[e] << 1) != 0) << (n * PER_QUAD + e);
    } else {
        for (int e = 0; i * 8 + e < a.count; ++e) byte |= (unsigned)((WORD)(a.x[i * 8 + e] << 1) != 0) << e;
    }
    a.bits[i] = (unsigned char)byte;
}

extern "C" __global__ void unpack(const Arguments a) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i * 8 >= a.count) return;
    const unsigned byte = a.bits[i];
    if (i * 8 + 8 <= a.count) {
        Quad* to = (Quad*)a.x + i * LOADS;
#pragma unroll
        for (int n = 0; n < LOADS; ++n) {
            Quad q;
#pragma unroll
            for (int e = 0; e < PER_QUAD; ++e) q.w[e] = (byte >> (n * PER_QUAD + e)) & 1 ? (WORD)ONE : (WORD)0;
            to[n] = q;
        }
    } else {
        for (int e = 0; i * 8 + e < a.count; ++e) a.x[i * 8 + e] = (byte >> e) & 1 ? (WORD)ONE : (WORD)0;
    }
}
