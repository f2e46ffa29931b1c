// The formulas of PSPL, shared by all kernels: window (Eq. 4), similarity (Eq. 5), attention (Eq. 7, 8), weighted
// distance and its derivative (Eq. 10), padding.
//
// V is a number (float, double) or a vector of them; T is the type of the constants. Math supplies what processors
// compute differently, for V and for T: reciprocal, normalized_difference, exp2, rsqrt,
// clamp_variance, absolute, copy_sign and select. The implementations are cuda/primitives.cuh and cpu/simd.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "pspl_params.h"

namespace pspl {

template <typename T>
constexpr T kLargest = std::numeric_limits<T>::max();

// ---------------------------------------------------------------- Gaussian window

// The weights of Eq. 4, formed in float64, on the host. Rounding them to T leaves their sum slightly off 1, which would
// bias every pixel in the same direction. The excess is put back into the taps, from the centre outwards. Each changes
// by a few roundings only: a relative change of a tap is one of the variance of pixels that differ there, and as large
// an error of the similarity.
template <typename T>
void fill_taps(ForwardParams<T>& p, double sigma) {
  double total = 0;
  double weight[kMaxRadius + 1];
  for (int i = 0; i <= p.radius; ++i) {
    weight[i] = std::exp(-0.5 * (i / sigma) * (i / sigma));
    total += i == 0 ? weight[i] : 2 * weight[i];
  }
  double excess = -1;
  for (int i = 0; i <= p.radius; ++i) {
    p.taps[i] = static_cast<T>(weight[i] / total);
    excess += (i == 0 ? 1 : 2) * static_cast<double>(p.taps[i]);
  }
  for (int i = 1; i <= p.radius; ++i) {
    const double most = 4 * std::numeric_limits<T>::epsilon() * p.taps[i];
    const T corrected = static_cast<T>(p.taps[i] - std::fmin(std::fmax(excess / 2, -most), most));
    excess += 2 * (static_cast<double>(corrected) - static_cast<double>(p.taps[i]));
    p.taps[i] = corrected;
  }
}

// ---------------------------------------------------------------- similarity map

// Eq. 5 from the means and variances of s = x + y and d = x - y. These four moments are enough, because it needs only
// var_x + var_y and cov_xy:
//   2 mu_x mu_y = (mu_s^2 - mu_d^2) / 2,  mu_x^2 + mu_y^2 = (mu_s^2 + mu_d^2) / 2,
// and likewise for the covariance and the variances. variance_s includes 2 C2, which Eq. 5 adds anyway. A variance does
// not change when a constant is subtracted from the values: kernels subtract a pivot that is near the values of the
// window, or rounding of the squares would exceed the variance. A NaN or Inf in a variance is in its mean as well, so
// the clamp may drop it.
template <typename Math, typename V, typename T>
PSPL_FN V similarity(V mean_s, V mean_d, V variance_s, V variance_d, T twice_c1, T twice_c2) {
  const V luminance = Math::normalized_difference(mean_s * mean_s + twice_c1, mean_d * mean_d);
  const V structure =
      Math::normalized_difference(Math::clamp_variance(variance_s, twice_c2), Math::clamp_variance(variance_d, T(0)));
  return luminance * structure;
}

// ---------------------------------------------------------------- attention map

// A number in memory that is float32 or float64.
template <typename T>
PSPL_FN T read_number(const void* data, DType dtype) {
  return dtype == DType::kFloat64 ? static_cast<T>(*static_cast<const double*>(data))
                                  : static_cast<T>(*static_cast<const float*>(data));
}

// Eq. 8. alpha = 0 means beta, whatever the step: 0 * inf must not give NaN. A step tensor is read here, by the kernel,
// so that a captured graph follows the schedule.
template <typename T>
PSPL_FN T delta_of(const ForwardParams<T>& p) {
  T step = p.step;
  if (p.step_tensor != nullptr) step = read_number<T>(p.step_tensor, p.step_dtype);
  return p.alpha == T(0) ? p.beta : p.alpha * step + p.beta;
}

// sqrt(log2 e) / delta, so that attention() needs one exp2. delta = 0 gives the largest finite number: 0 times it is 0
// (attention gamma), anything else squares to infinity (attention 0), and neither gives NaN.
template <typename Math, typename T>
PSPL_FN T inverse_delta_of(const ForwardParams<T>& p) {
  const T inverse = T(1.2011224087864498) * Math::reciprocal(Math::absolute(delta_of(p)));
  return inverse > kLargest<T> ? kLargest<T> : inverse;
}

// Eq. 7: gamma exp(-(M_s - mu)^2 / delta^2).
template <typename Math, typename V, typename T>
PSPL_FN V attention(V similarity, T inverse_delta, T gamma, T mu) {
  const V x = (similarity - mu) * inverse_delta;
  return Math::exp2(-x * x) * gamma;
}

// ---------------------------------------------------------------- weighted distance

// One pixel's term of Eq. 10 and its derivative with respect to sr; the attention is a constant.
template <typename V>
struct PixelLoss {
  V loss;
  V gradient;
};

template <typename Math, typename V, typename T>
PSPL_FN PixelLoss<V> pixel_loss(Distance distance, V attention, V difference, T eps_squared) {
  if (distance == Distance::kL1) {
    // The attention times sign(d), where sign(0) = 0: the NaN of a window reaches its pixels without a difference too.
    const V magnitude = Math::select(difference == V(T(0)), V(T(0)), V(T(1)));
    return {attention * Math::absolute(difference), attention * Math::copy_sign(magnitude, difference)};
  }
  const V weight = attention * attention;
  const V square = weight * difference * difference;
  if (distance == Distance::kL2) return {square, T(2) * weight * difference};
  const V inverse_root = Math::rsqrt(square + eps_squared);
  return {(square + eps_squared) * inverse_root, weight * difference * inverse_root};
}

// Stores the total over all pixels of one of the sums.
template <typename T>
PSPL_FN void store_sum(const ForwardParams<T>& p, int sum, double total) {
  if (sum == kLossSum) {
    if (p.loss != nullptr) *p.loss = static_cast<T>(total);
  } else if (p.stats != nullptr) {
    // Divided instead of multiplied by 1 / n, so that the mean of n ones is 1.
    const double mean = total / static_cast<double>(p.numel());
    p.stats[sum - 1] = static_cast<T>(sum == kAttentionSum ? mean / p.attention_scale : mean);
  }
}

// ---------------------------------------------------------------- constants

// Fills the numbers of p, whose sizes, output, distance and radius are set, on the host.
//
// Every pixel's loss and gradient is multiplied by a scale (1/n for a mean, the weight of the loss) at no cost per
// pixel: Eq. 10 is homogeneous in (M_a, eps), of degree 1 for l1 and charbonnier, of degree 2 for l2, which has no eps.
// So it suffices to scale gamma and eps. eps^2 stays a normal number: below that its effect is less than rounding.
template <typename T>
void set_constants(ForwardParams<T>& p, const Constants& c, double loss_weight) {
  fill_taps(p, c.sigma);
  const auto square = [](double x) { return x * x; };
  p.twice_c1 = static_cast<T>(2 * square(c.k1 * c.data_range));
  p.twice_c2 = static_cast<T>(2 * square(c.k2 * c.data_range));
  p.alpha = static_cast<T>(c.alpha);
  p.beta = static_cast<T>(c.beta);
  p.mu = static_cast<T>(c.mu);

  const double weight = p.output == Output::kAttentionMap ? 1.0 : loss_weight;
  const double elements = p.output == Output::kMean ? static_cast<double>(p.numel()) : 1.0;
  const double scale = weight / elements;
  const double factor = p.distance == Distance::kL2 ? std::sqrt(scale) : scale;
  p.gamma = static_cast<T>(c.gamma * factor);
  // From the rounded gamma, so that the mean attention can be recovered from the sum of the scaled one.
  p.attention_scale = c.gamma > 0 ? static_cast<double>(p.gamma) / c.gamma : 1.0;
  const double eps_squared = c.eps * c.eps * factor * factor;
  p.eps_squared = static_cast<T>(std::fmax(eps_squared, static_cast<double>(std::numeric_limits<T>::min())));
}

// ---------------------------------------------------------------- integers

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Padding: the index of the pixel at position i of a line of n pixels, for any i: negative, or beyond the end by
// several lengths. -1 means a zero outside the image.
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
