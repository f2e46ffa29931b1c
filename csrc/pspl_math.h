// The formulas of PSPL, once, for every kernel: moments -> similarity (Eq. 5) -> attention (Eq. 7)
// -> weighted residual and distance (Eq. 10). V is a scalar (float, double: host and device) or a vector of them
// (csrc/cpu/vec.h); T is V's scalar. A vector type brings its own overloads of the primitives of the first section.
#pragma once

#include <cmath>
#include <limits>

#include "pspl_params.h"

namespace pspl {

template <typename T>
constexpr T kLargest = std::numeric_limits<T>::max();

// ---------------------------------------------------------------- primitives

PSPL_FN float select(bool condition, float a, float b) { return condition ? a : b; }
PSPL_FN double select(bool condition, double a, double b) { return condition ? a : b; }

PSPL_FN float absolute(float x) { return std::fabs(x); }
PSPL_FN double absolute(double x) { return std::fabs(x); }

PSPL_FN float copy_sign(float magnitude, float sign) { return copysignf(magnitude, sign); }
PSPL_FN double copy_sign(double magnitude, double sign) { return copysign(magnitude, sign); }

// max(x, least) for a variance, or one to which the constant `least` was added. It may turn NaN into `least`: a NaN or
// Inf that reached a variance has reached the mean too, and similarity() multiplies the two.
PSPL_FN float clamp_variance(float x, float least) { return fmaxf(x, least); }
PSPL_FN double clamp_variance(double x, double least) { return fmax(x, least); }

// (same - apart) / (same + apart) for same > 0 and apart >= 0: in [-1, 1], and exactly 1 for apart = 0. The device's
// approximate reciprocal is good to one unit in the last place, so a quotient could come out as 1 + 2^-22: the factor
// takes that excess back.
PSPL_FN float balance(float same, float apart) {
#if defined(__CUDA_ARCH__)
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(same + apart));
  return fmaf(apart * inverse, -2.0f * (1.0f - 0x1p-22f), 1.0f);
#else
  return 1.0f - 2.0f * (apart / (same + apart));
#endif
}
PSPL_FN double balance(double same, double apart) { return 1.0 - 2.0 * (apart / (same + apart)); }

// 1 / x to half a unit in the last place or so, without the call that the device makes of an exact division.
PSPL_FN float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float rough;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(rough) : "f"(x));
  const float refined = fmaf(rough, fmaf(-x, rough, 1.0f), rough);
  return refined == refined ? refined : rough;  // 0 and infinity have no refinement
#else
  return 1.0f / x;
#endif
}
PSPL_FN double reciprocal(double x) { return 1.0 / x; }

PSPL_FN float exp2_of(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
PSPL_FN double exp2_of(double x) { return exp2(x); }

PSPL_FN float reciprocal_sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return rsqrtf(x);
#else
  return 1.0f / sqrtf(x);
#endif
}
PSPL_FN double reciprocal_sqrt(double x) { return 1.0 / sqrt(x); }

// ---------------------------------------------------------------- similarity map

// Gaussian-weighted moments at one pixel of s = x + y - pivot and d = x - y. Four are enough: SSIM asks for
// var_x + var_y and cov_xy only. A variance does not change when a constant is taken off; the pivot, a typical value of
// x + y nearby, keeps the squares small where rounding would otherwise drown the variance.
template <typename V>
struct Moments {
  V mean_sum;     // G * s
  V mean_diff;    // G * d
  V square_sum;   // G * s^2 + 2 C2: Eq. 5 adds the constant anyway, and the first term of the sum takes it in for free
  V square_diff;  // G * d^2
};

// Eq. 5 through (S, D) = (mu_x + mu_y, mu_x - mu_y) and the variances of s and d:
//   2 mu_x mu_y = (S^2 - D^2) / 2,  mu_x^2 + mu_y^2 = (S^2 + D^2) / 2, and likewise for the covariance and the
//   variances. The first variance comes with 2 C2 added to it.
template <typename V, typename T>
PSPL_FN V similarity(V mean_sum, V mean_diff, V variance_sum, V variance_diff, T twice_c1, T twice_c2) {
  const V luminance_same = mean_sum * mean_sum + twice_c1;
  const V luminance_apart = mean_diff * mean_diff;
  const V structure_same = clamp_variance(variance_sum, twice_c2);
  const V structure_apart = clamp_variance(variance_diff, T(0));
  return balance(luminance_same, luminance_apart) * balance(structure_same, structure_apart);
}

template <typename V, typename T>
PSPL_FN V similarity(const Moments<V>& m, T pivot, T twice_c1, T twice_c2) {
  return similarity(m.mean_sum + pivot, m.mean_diff, m.square_sum - m.mean_sum * m.mean_sum,
                    m.square_diff - m.mean_diff * m.mean_diff, twice_c1, twice_c2);
}

// ---------------------------------------------------------------- attention map

// Eq. 8. A growth rate of 0 means beta, whatever the step: 0 * inf must not make a NaN of it.
template <typename T>
PSPL_FN T width(T alpha, T step, T beta) {
  return alpha == T(0) ? beta : alpha * step + beta;
}

// sqrt(log2 e) / delta, so that attention() needs one exp2. delta = 0 gives the largest finite number: 0 times it is 0
// (attention gamma), anything else squares to infinity (attention 0), and NaN comes from neither.
template <typename T>
PSPL_FN T inverse_width(T delta) {
  const T inverse = T(1.2011224087864498) * reciprocal(absolute(delta));
  return inverse > kLargest<T> ? kLargest<T> : inverse;
}

// A number that stands in memory as float32 or float64.
template <typename T>
PSPL_FN T read_number(const void* data, DType dtype) {
  return dtype == DType::kFloat64 ? static_cast<T>(*static_cast<const double*>(data))
                                  : static_cast<T>(*static_cast<const float*>(data));
}

// Eq. 8's step is a number of the launch or stands in the kernel's memory, so that a captured graph follows the
// schedule.
template <typename T>
PSPL_FN T inverse_width_of(const Params<T>& p) {
  T step = p.step;
  if (p.step_tensor != nullptr) step = read_number<T>(p.step_tensor, p.step_dtype);
  return inverse_width(width(p.alpha, step, p.beta));
}

// Eq. 7: gamma exp(-(M_s - mu)^2 / delta^2).
template <typename V, typename T>
PSPL_FN V attention(V similarity, T inverse_width, T gamma, T mu) {
  const V distance = (similarity - mu) * inverse_width;
  return exp2_of(-distance * distance) * gamma;
}

// ---------------------------------------------------------------- distance

// One pixel's term of Eq. 10 and its derivative by sr, the attention map being a constant.
template <typename V>
struct Weighted {
  V loss;
  V residual;
};

template <typename V, typename T>
PSPL_FN Weighted<V> weighted(Distance distance, V attention, V difference, T eps_squared) {
  if (distance == Distance::kL1) {
    // sign(0) = 0. A NaN difference keeps its NaN: its own window has made the attention NaN.
    const V zero = V(T(0));
    return {attention * absolute(difference), select(difference == zero, zero, copy_sign(attention, difference))};
  }
  const V weight = attention * attention;
  const V square = weight * difference * difference;
  if (distance == Distance::kL2) return {square, T(2) * weight * difference};
  const V inverse_root = reciprocal_sqrt(square + eps_squared);
  return {(square + eps_squared) * inverse_root, weight * difference * inverse_root};
}

// ---------------------------------------------------------------- padding

// Index of the pixel that stands at position i of a line of n pixels, for any i: negative, or beyond by several
// lengths. -1 means: outside, a zero.
template <typename I>
PSPL_FN I padded_index(I i, I n, Padding padding) {
  if (i >= 0 && i < n) return i;
  if (padding == Padding::kZeros) return -1;
  if (padding == Padding::kReplicate) return i < 0 ? 0 : n - 1;
  if (n == 1) return 0;
  const I period = 2 * (n - 1);
  const I phase = ((i % period) + period) % period;
  return phase < n ? phase : period - phase;
}

}  // namespace pspl
