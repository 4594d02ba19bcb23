// Per-channel arithmetic of the fused normalisation: one launch instead of a dozen operations on [C] tensors.
// Partial sums lie as [rows, C, width]; a block of 1024 threads adds up 32 channels (width 1) or one channel (wider).
struct Shape { long long rows, channels, width; };

// The sum of `partial` for this thread's channel, valid in the threads that `owns_channel` names.
__device__ __forceinline__ double block_sum(const float* partial, const Shape& shape, long long channel) {
    __shared__ double held[32][33];
    const int x = threadIdx.x % 32, y = threadIdx.x / 32;
    double sum = 0;
    if (shape.width > 1) {
        const long long total = shape.rows * shape.width;
        #pragma unroll 4
        for (long long i = threadIdx.x; i < total; i += 1024) {
            const long long row = i / shape.width;
            sum += (double)__ldg(partial + (row * shape.channels + channel) * shape.width + (i - row * shape.width));
        }
    } else if (channel < shape.channels) {
        #pragma unroll 8
        for (long long row = y; row < shape.rows; row += 32) sum += (double)__ldg(partial + row * shape.channels + channel);
    }
    __syncthreads();
    held[y][x] = sum;
    __syncthreads();
    if (y == 0) {
        sum = 0;
        for (int row = 0; row < 32; ++row) sum += held[row][x];
        if (shape.width > 1)
            for (int offset = 16; offset; offset >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    }
    return sum;
}

__device__ __forceinline__ long long own_channel(const Shape& shape) {
    return shape.width > 1 ? blockIdx.x : blockIdx.x * 32ll + threadIdx.x % 32;
}

__device__ __forceinline__ bool owns_channel(const Shape& shape, long long channel) {
    return threadIdx.x < (shape.width > 1 ? 1 : 32) && channel < shape.channels;
}

struct ForwardArguments {
    const float *first, *second, *pivot, *weight, *bias;
    float *stats, *running_mean, *running_var;
    long long* batches;
    const float* offset;  // left out of y (finish.Running), or null
    Shape shape;
    double count, eps, rate;
};

// stats [6, C]: mean, biased variance, scale = weight / sqrt(var + eps), shift = bias - mean scale, count, unbiased
// variance.
extern "C" __global__ void __launch_bounds__(1024) norm_forward(const ForwardArguments a) {
    const long long channel = own_channel(a.shape), C = a.shape.channels;
    const double sum = block_sum(a.first, a.shape, channel), square = block_sum(a.second, a.shape, channel);
    if (!owns_channel(a.shape, channel)) return;
    const double offset = sum / a.count, variance = square / a.count - offset * offset;
    const float mean = (float)((double)a.pivot[channel] + offset), var = (float)(variance > 0 ? variance : 0);
    const float scale = a.weight[channel] * (float)(1.0 / sqrt((double)var + a.eps));
    float* to = a.stats + channel;
    to[0] = mean;
    to[C] = var;
    to[2 * C] = scale;
    to[3 * C] = a.bias[channel] - mean * scale;
    to[4 * C] = (float)a.count;
    const float unbiased = (float)(var * a.count / (a.count > 1 ? a.count - 1 : 1)), rate = (float)a.rate;
    to[5 * C] = unbiased;
    if (!a.running_mean) return;
    const float shifted = a.offset ? mean + a.offset[channel] : mean;
    a.running_mean[channel] += rate * (shifted - a.running_mean[channel]);
    a.running_var[channel] += rate * (unbiased - a.running_var[channel]);
    if (channel == 0) *a.batches += 1;
}

struct PivotArguments {
    const void* y;
    float* pivot;
    long long channels, stride, bits;
};

// The first value of every channel, of a tensor of 32-bit (float), 16-bit (bfloat16) or -16 (float16) elements.
extern "C" __global__ void __launch_bounds__(1024) norm_pivot(const PivotArguments a) {
    const long long channel = blockIdx.x * 1024ll + threadIdx.x;
    if (channel >= a.channels) return;
    const long long at = channel * a.stride;
    float value;
    if (a.bits == 32) value = ((const float*)a.y)[at];
    else if (a.bits == 16) value = __uint_as_float((unsigned)((const unsigned short*)a.y)[at] << 16);
    else asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(((const unsigned short*)a.y)[at]));
    a.pivot[channel] = value;
}

struct BackwardArguments {
    const float *weighted, *plain, *stats;
    float* out;
    Shape shape;
    double eps;
};

// out [4, C]: gradients of weight and bias, and a, b of the correction (programs.py).
extern "C" __global__ void __launch_bounds__(1024) norm_backward(const BackwardArguments a) {
    const long long channel = own_channel(a.shape), C = a.shape.channels;
    const double gy = block_sum(a.weighted, a.shape, channel), g = block_sum(a.plain, a.shape, channel);
    if (!owns_channel(a.shape, channel)) return;
    const double mean = a.stats[channel], scale = a.stats[2 * C + channel], count = a.stats[4 * C + channel];
    const double inverse = 1.0 / sqrt((double)a.stats[C + channel] + a.eps), slope = (gy - mean * g) * inverse;
    const double correction = -scale * inverse * slope / count;
    a.out[channel] = (float)slope;
    a.out[C + channel] = (float)g;
    a.out[2 * C + channel] = (float)correction;
    a.out[3 * C + channel] = (float)(-scale * g / count - mean * correction);
}
