// The element types of images, and their conversion to and from the compute type. Plain integer code, which the
// compiler vectorises: 16-bit floats need no special instructions.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../pspl_params.h"
#include "instruction_set.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename To, typename From>
PSPL_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

PSPL_INLINE float widen(float x) { return x; }
PSPL_INLINE double widen(double x) { return x; }
PSPL_INLINE float widen(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
PSPL_INLINE float widen(Half x) {
  const uint32_t magnitude = x.bits & 0x7fffu;
  // The multiplication corrects the exponent's bias and normalises a subnormal half.
  const float finite = bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t infinite = magnitude >= 0x7c00u ? 0x7f800000u : 0u;  // Inf and NaN
  return bit_cast<float>(bit_cast<uint32_t>(finite) | infinite | uint32_t(x.bits & 0x8000u) << 16);
}

PSPL_INLINE Half to_half(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - ((127 - 15) << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // One unit in the last place of 0.5f is that of the subnormal halves: the addition rounds.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;  // 2^-14
  const uint32_t extended = magnitude < 0x477ff000u ? finite : 0x7c00u;  // 65520, halfway to 2^16
  const uint32_t result = magnitude > 0x7f800000u ? 0x7e00u : extended;
  return {uint16_t(result | (bits >> 16 & 0x8000u))};
}

PSPL_INLINE BFloat16 to_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x0040u;
  return {uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded)};
}

// x rounded once, to nearest even. 16-bit elements are made of float32 only.
template <typename E, typename T>
PSPL_INLINE E narrow(T x) {
  static_assert(sizeof(E) >= sizeof(float) || std::is_same_v<T, float>, "float64 would be rounded twice");
  if constexpr (std::is_same_v<E, Half>) {
    return to_half(x);
  } else if constexpr (std::is_same_v<E, BFloat16>) {
    return to_bfloat16(x);
  } else {
    return E(x);
  }
}

// Calls visit with a null pointer to the type of the elements, for its type.
template <typename Visit>
PSPL_INLINE auto with_element(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::kFloat64:
      return visit(static_cast<double*>(nullptr));
    case DType::kFloat16:
      return visit(static_cast<Half*>(nullptr));
    case DType::kBFloat16:
      return visit(static_cast<BFloat16*>(nullptr));
    default:
      return visit(static_cast<float*>(nullptr));
  }
}

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
