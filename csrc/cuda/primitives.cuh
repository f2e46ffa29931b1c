// What CUDA adds to C++: architectures, approximate and packed instructions, warp shuffles, 16-bit conversions. No
// other file contains assembly or asks for the architecture. The tests compile this directory with g++; the `emulation`
// functions then replace the instructions and return the exact value, shifted by the error bound that is stated at each
// primitive.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "../pspl_math.h"
#include "block.h"

namespace pspl::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

// ---------------------------------------------------------------- architectures

// Instructions on two float32 numbers in adjacent registers. ptxas splits them on other architectures.
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 1000 && __CUDA_ARCH__ < 1200
#define PSPL_PACKED_FLOAT32
#endif

// ---------------------------------------------------------------- approximate instructions
//
// Error bounds: PTX ISA, "Floating Point Instructions". Subnormal operands and results become zero (.ftz).

#if defined(__CUDACC__)
// 1 / x within 1 ulp.
__device__ __forceinline__ float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^x within 2 ulp.
__device__ __forceinline__ float ex2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#else
using emulation::ex2_approx;
using emulation::rcp_approx;
#endif

// ---------------------------------------------------------------- the Math policy of pspl_math.h

struct DeviceMath {
  template <typename T>
  static __device__ __forceinline__ T select(bool condition, T a, T b) {
    return condition ? a : b;
  }
  template <typename T>
  static __device__ __forceinline__ T absolute(T x) {
    return fabs(x);
  }
  template <typename T>
  static __device__ __forceinline__ T copy_sign(T magnitude, T sign) {
    return copysign(magnitude, sign);
  }
  // max(x, least). NaN becomes `least`; see similarity().
  template <typename T>
  static __device__ __forceinline__ T clamp_variance(T x, T least) {
    return fmax(x, least);
  }

  // (a - b) / (a + b) for a > 0 and b >= 0: within [-1, 1], and exactly 1 for b = 0. The reciprocal and the two
  // roundings may make the quotient b / (a + b) too large by 2^-22. In the denominator b is increased by that amount,
  // which matters only where the quotient is near 1.
  static __device__ __forceinline__ float normalized_difference(float a, float b) {
    return fmaf(b * rcp_approx(fmaf(b, 1.0f + 0x1p-22f, a)), -2.0f, 1.0f);
  }
  static __device__ __forceinline__ double normalized_difference(double a, double b) {
    return 1.0 - 2.0 * (b / (a + b));
  }

  // 1 / x, refined by one Newton step to about half an ulp. An exact division would be a function call.
  static __device__ __forceinline__ float reciprocal(float x) {
    const float rough = rcp_approx(x);
    const float refined = fmaf(rough, fmaf(-x, rough, 1.0f), rough);
    return refined == refined ? refined : rough;  // 0 and infinity have no refinement
  }
  static __device__ __forceinline__ double reciprocal(double x) { return 1.0 / x; }

  static __device__ __forceinline__ float exp2(float x) { return ex2_approx(x); }
  static __device__ __forceinline__ double exp2(double x) { return ::exp2(x); }

  // Within 2 ulp (CUDA C++ Programming Guide, "Mathematical Functions").
  static __device__ __forceinline__ float rsqrt(float x) { return rsqrtf(x); }
  static __device__ __forceinline__ double rsqrt(double x) { return 1.0 / sqrt(x); }
};

// ---------------------------------------------------------------- pairs

struct alignas(8) Pair {
  float s;  // of x + y
  float d;  // of x - y
};

#if defined(PSPL_PACKED_FLOAT32)
__device__ __forceinline__ uint64_t pack(Pair pair) {
  uint64_t bits;
  asm("mov.b64 %0, {%1, %2};" : "=l"(bits) : "f"(pair.s), "f"(pair.d));
  return bits;
}

__device__ __forceinline__ Pair unpack(uint64_t bits) {
  Pair pair;
  asm("mov.b64 {%0, %1}, %2;" : "=f"(pair.s), "=f"(pair.d) : "l"(bits));
  return pair;
}
#endif

__device__ __forceinline__ Pair add(Pair a, Pair b) {
#if defined(PSPL_PACKED_FLOAT32)
  uint64_t result;
  asm("add.rn.f32x2 %0, %1, %2;" : "=l"(result) : "l"(pack(a)), "l"(pack(b)));
  return unpack(result);
#else
  return {a.s + b.s, a.d + b.d};
#endif
}

__device__ __forceinline__ Pair operator-(Pair pair) { return {-pair.s, -pair.d}; }

// factor * value + sum, each element rounded once.
__device__ __forceinline__ Pair multiply_add(Pair factor, Pair value, Pair sum) {
#if defined(PSPL_PACKED_FLOAT32)
  uint64_t result;
  asm("fma.rn.f32x2 %0, %1, %2, %3;" : "=l"(result) : "l"(pack(factor)), "l"(pack(value)), "l"(pack(sum)));
  return unpack(result);
#else
  return {fmaf(factor.s, value.s, sum.s), fmaf(factor.d, value.d, sum.d)};
#endif
}

__device__ __forceinline__ Pair multiply_add(float tap, Pair value, Pair sum) {
  return multiply_add(Pair{tap, tap}, value, sum);
}

__device__ __forceinline__ Pair square(Pair pair) {
#if defined(PSPL_PACKED_FLOAT32)
  uint64_t result;
  asm("mul.rn.f32x2 %0, %1, %1;" : "=l"(result) : "l"(pack(pair)));
  return unpack(result);
#else
  return {pair.s * pair.s, pair.d * pair.d};
#endif
}

// ---------------------------------------------------------------- warps

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

// ---------------------------------------------------------------- elements

template <DType>
struct ElementOf;
template <>
struct ElementOf<DType::kFloat32> {
  using Type = float;
};
template <>
struct ElementOf<DType::kFloat16> {
  using Type = __half;
};
template <>
struct ElementOf<DType::kBFloat16> {
  using Type = __nv_bfloat16;
};

// The element at an offset of an image, in the compute type.
template <typename T, typename E>
__device__ __forceinline__ T read(const void* data, int64_t offset) {
  const E value = static_cast<const E*>(data)[offset];
  if constexpr (std::is_same_v<E, __half>) {
    return __half2float(value);
  } else if constexpr (std::is_same_v<E, __nv_bfloat16>) {
    return __bfloat162float(value);
  } else {
    return value;
  }
}

// value rounded once, to nearest even.
template <typename E, typename T>
__device__ __forceinline__ E round_to(T value) {
  if constexpr (std::is_same_v<E, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<E, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

// Two values rounded once, in one aligned store.
__device__ inline void store_pair(float* to, float a, float b) { *reinterpret_cast<float2*>(to) = make_float2(a, b); }
__device__ inline void store_pair(__half* to, float a, float b) {
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(a, b);
}
__device__ inline void store_pair(__nv_bfloat16* to, float a, float b) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(a, b);
}

}  // namespace pspl::cuda
