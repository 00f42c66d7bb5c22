// Arithmetic and conversions whose compiled form uses many instructions: one element per thread.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

__constant__ float table[5] = {1.f, -2.f, 0.5f, 4.f, 1e-3f};
__device__ int64_t offsets[3] = {7, -5000000000ll, 11};

struct Params {
  const float* x;
  float* y;
  int n;
  float exponent;
  int64_t shift[3];
};

#define FOR_EACH(i, n) if (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n)

extern "C" __global__ void struct_params(const Params p) {
  FOR_EACH(i, p.n) p.y[i] = table[i % 5] * p.x[i] + p.exponent + float(p.shift[i % 3]) + float(offsets[i % 3]);
}

extern "C" __global__ void power(const float* x, const float* e, float* y, int n) {
  FOR_EACH(i, n) y[i] = powf(x[i], e[i]);
}

// y[function][i]
extern "C" __global__ void functions(const float* x, float* y, int n) {
  FOR_EACH(i, n) {
    y[i] = expf(x[i]);
    y[n + i] = logf(x[i]);
    y[2 * n + i] = sinf(x[i]);
    y[3 * n + i] = 1.f / x[i];
    y[4 * n + i] = sqrtf(fabsf(x[i]));
    y[5 * n + i] = tanhf(x[i]);
    y[6 * n + i] = rsqrtf(x[i]);
    y[7 * n + i] = __powf(x[i], 0.75f);
    y[8 * n + i] = erff(x[i]);
    y[9 * n + i] = __fdividef(x[i], 3.f);
  }
}

extern "C" __global__ void double_functions(const double* x, double* y, int n) {
  FOR_EACH(i, n) {
    y[i] = x[i] / (x[i] + 3.0);
    y[n + i] = exp(x[i]);
    y[2 * n + i] = log(x[i]);
    y[3 * n + i] = pow(fabs(x[i]), 0.75);
    y[4 * n + i] = sqrt(x[i]);
    y[5 * n + i] = sin(x[i] * 1e6);
    y[6 * n + i] = fma(x[i], x[i], -2.0);
    y[7 * n + i] = tanh(x[i]);
  }
}

template <typename T>
__global__ void quotients(const T* a, const T* b, T* q, int n) {
  FOR_EACH(i, n) {
    q[i] = a[i] / b[i];
    q[n + i] = a[i] % b[i];
    q[2 * n + i] = a[i] / T(7);
    q[3 * n + i] = a[i] % T(1000);
  }
}
template __global__ void quotients<int32_t>(const int32_t*, const int32_t*, int32_t*, int);
template __global__ void quotients<uint32_t>(const uint32_t*, const uint32_t*, uint32_t*, int);
template __global__ void quotients<int64_t>(const int64_t*, const int64_t*, int64_t*, int);
template __global__ void quotients<uint64_t>(const uint64_t*, const uint64_t*, uint64_t*, int);
template __global__ void quotients<int8_t>(const int8_t*, const int8_t*, int8_t*, int);
template __global__ void quotients<uint16_t>(const uint16_t*, const uint16_t*, uint16_t*, int);

__device__ float to_float(__half x) { return __half2float(x); }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void from_float(__half* to, float x) { *to = __float2half_rn(x); }
__device__ void from_float(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

// y[operation][i]; the last four on pairs
template <typename T, typename Pair>
__global__ void half_arithmetic(const T* a, const T* b, const T* c, T* y, int n) {
  FOR_EACH(i, n) {
    y[i] = __hadd(a[i], b[i]);
    y[n + i] = __hsub(a[i], b[i]);
    y[2 * n + i] = __hmul(a[i], b[i]);
    y[3 * n + i] = __hfma(a[i], b[i], c[i]);
    y[4 * n + i] = __hmax(a[i], b[i]);
    y[5 * n + i] = __hmin_nan(a[i], b[i]);
    from_float(&y[6 * n + i], to_float(a[i]) * 1.1f);
    y[7 * n + i] = __hlt(a[i], b[i]) ? c[i] : __hneg(c[i]);
    y[8 * n + i] = __hdiv(a[i], b[i]);
    if (i % 2 == 0) {
      Pair p = *reinterpret_cast<const Pair*>(a + i), q = *reinterpret_cast<const Pair*>(b + i);
      Pair r = *reinterpret_cast<const Pair*>(c + i);
      *reinterpret_cast<Pair*>(y + 9 * n + i) = __hadd2(p, q);
      *reinterpret_cast<Pair*>(y + 10 * n + i) = __hmul2(p, q);
      *reinterpret_cast<Pair*>(y + 11 * n + i) = __hfma2(p, q, r);
      *reinterpret_cast<Pair*>(y + 12 * n + i) = __hmax2(p, q);
    }
  }
}
template __global__ void half_arithmetic<__half, __half2>(const __half*, const __half*, const __half*, __half*, int);
template __global__ void half_arithmetic<__nv_bfloat16, __nv_bfloat162>(const __nv_bfloat16*, const __nv_bfloat16*,
                                                                        const __nv_bfloat16*, __nv_bfloat16*, int);

extern "C" __global__ void conversions(const float* x, uint8_t* as_u8, int64_t* as_s64, double* as_f64, float* back,
                                       int n) {
  FOR_EACH(i, n) {
    as_u8[i] = uint8_t(int(x[i]));
    as_s64[i] = int64_t(x[i]);
    as_f64[i] = x[i];
    back[i] = float(int64_t(x[i]) * 1000003) + float(int8_t(as_u8[i]));
  }
}

// A call with a pointer to a local array, indexed where the compiler cannot see it.
__noinline__ __device__ float horner(const float* coefficients, int degree, float x) {
  float y = 0.f;
  for (int i = degree; i >= 0; --i) y = fmaf(y, x, coefficients[i]);
  return y;
}

extern "C" __global__ void polynomial(const float* x, float* y, int n) {
  FOR_EACH(i, n) {
    float coefficients[4] = {1.f, 2.f, -3.f, 0.5f};
    coefficients[i % 4] = 0.25f;
    y[i] = horner(coefficients, 1 + i % 3, x[i]);
  }
}
