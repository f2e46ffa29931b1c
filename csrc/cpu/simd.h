// N numbers side by side, over the vector extensions of g++ and clang, and the Math policy of pspl_math.h for them.
#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

template <typename T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
  using comparison = int32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
  using comparison = int64_t;
};

template <typename E, int kBytes>
struct RawOf {
  typedef E type __attribute__((vector_size(kBytes)));
  typedef E unaligned __attribute__((vector_size(kBytes), aligned(alignof(E)), may_alias));
};

template <typename T, int N>
struct Vec {
  using Bits = typename BitsOf<T>::type;
  using Raw = typename RawOf<T, N * sizeof(T)>::type;
  using RawBits = typename RawOf<Bits, N * sizeof(T)>::type;
  using Unaligned = typename RawOf<T, N * sizeof(T)>::unaligned;

  Raw raw;

  Vec() = default;
  PSPL_INLINE Vec(Raw r) : raw(r) {}
  PSPL_INLINE explicit Vec(T scalar) : raw(scalar - Raw{}) {}  // x - 0 is x for every x, -0 and NaN included
  PSPL_INLINE explicit Vec(RawBits bits) : raw((Raw)bits) {}

  PSPL_INLINE RawBits bits() const { return (RawBits)raw; }

  static PSPL_INLINE Vec load(const T* from) { return Vec(Raw(*reinterpret_cast<const Unaligned*>(from))); }
  PSPL_INLINE void store(T* to) const { *reinterpret_cast<Unaligned*>(to) = raw; }
};

// What a processor of the instruction set adds at once.
template <typename T>
constexpr int kLanes = PSPL_VECTOR_BYTES / sizeof(T);
template <typename T>
using Vector = Vec<T, kLanes<T>>;

// All ones in the lanes where a comparison holds.
template <typename T, int N>
struct Mask {
  typename RawOf<typename BitsOf<T>::comparison, N * sizeof(T)>::type raw;
};

#define PSPL_VEC               \
  template <typename T, int N> \
  PSPL_INLINE
#define PSPL_OPERATOR(op)                                                                        \
  PSPL_VEC Vec<T, N> operator op(Vec<T, N> a, Vec<T, N> b) { return Vec<T, N>(a.raw op b.raw); } \
  PSPL_VEC Vec<T, N> operator op(Vec<T, N> a, T b) { return Vec<T, N>(a.raw op b); }             \
  PSPL_VEC Vec<T, N> operator op(T a, Vec<T, N> b) { return Vec<T, N>(a op b.raw); }
PSPL_OPERATOR(+)
PSPL_OPERATOR(-)
PSPL_OPERATOR(*)
PSPL_OPERATOR(/)
#undef PSPL_OPERATOR

PSPL_VEC Mask<T, N> operator==(Vec<T, N> a, Vec<T, N> b) { return {a.raw == b.raw}; }
PSPL_VEC Mask<T, N> operator<(Vec<T, N> a, Vec<T, N> b) { return {a.raw < b.raw}; }

PSPL_VEC Vec<T, N> operator-(Vec<T, N> x) { return Vec<T, N>(-x.raw); }

// a * b + c in one expression on the raw vectors: what both compilers contract to one instruction.
PSPL_VEC Vec<T, N> multiply_add(Vec<T, N> a, Vec<T, N> b, Vec<T, N> c) { return Vec<T, N>(a.raw * b.raw + c.raw); }

// x where the mask has ones, 0 where it has zeros, whatever x is there.
PSPL_VEC Vec<T, N> only(Vec<T, N> mask, Vec<T, N> x) { return Vec<T, N>(mask.bits() & x.bits()); }

// 2^f for |f| <= 1/2 is a polynomial: interpolation at the Chebyshev nodes of (2^f - 1) / f, so that 2^0 is exactly 1.
// Adding kRound pushes the fraction out of the mantissa, which leaves the nearest integer in the low bits.
template <typename T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr int kDegree = 6, kMantissa = 23, kBias = 127;
  static constexpr float kRound = 0x1.8p23f + kBias;
  static constexpr float kCoefficient[kDegree + 1] = {1.0f,         0.6931472f,    0.2402265f,    0.05550357f,
                                                      0.009618083f, 0.0013390863f, 0.00015453163f};
};
template <>
struct Exp2<double> {
  static constexpr int kDegree = 10, kMantissa = 52, kBias = 1023;
  static constexpr double kRound = 0x1.8p52 + kBias;
  static constexpr double kCoefficient[kDegree + 1] = {1.0,
                                                       0.6931471805599462,
                                                       0.24022650695910075,
                                                       0.05550410866465167,
                                                       0.009618129107618665,
                                                       0.0013333558200794592,
                                                       0.00015403530424776529,
                                                       1.5252672924850737e-05,
                                                       1.3215451633221434e-06,
                                                       1.0205905413765595e-07,
                                                       7.070977866508138e-09};
};

// Newton's iteration from the well-known guess on the exponent bits; each step squares the relative error, 0.034 at
// first. 0 gives a large finite number, so that 0 times it stays 0.
template <typename T>
struct InverseRoot;
template <>
struct InverseRoot<float> {
  static constexpr uint32_t kGuess = 0x5f3759df;
  static constexpr int kSteps = 3;
};
template <>
struct InverseRoot<double> {
  static constexpr uint64_t kGuess = 0x5fe6eb50c7b537a9;
  static constexpr int kSteps = 4;
};

#undef PSPL_VEC

template <typename T>
constexpr typename BitsOf<T>::type kSignBit = typename BitsOf<T>::type(1) << (8 * sizeof(T) - 1);

// The Math policy of pspl_math.h, for vectors and, where a formula of constants needs them, for numbers.
struct Simd {
  template <typename T>
  static PSPL_INLINE T reciprocal(T x) {
    return T(1) / x;
  }

  static PSPL_INLINE float absolute(float x) { return __builtin_fabsf(x); }
  static PSPL_INLINE double absolute(double x) { return __builtin_fabs(x); }

  template <typename T, int N>
  static PSPL_INLINE Vec<T, N> absolute(Vec<T, N> x) {
    return Vec<T, N>(x.bits() & ~kSignBit<T>);
  }

  template <typename T, int N>
  static PSPL_INLINE Vec<T, N> copy_sign(Vec<T, N> magnitude, Vec<T, N> sign) {
    return Vec<T, N>((magnitude.bits() & ~kSignBit<T>) | (sign.bits() & kSignBit<T>));
  }

  template <typename T, int N>
  static PSPL_INLINE Vec<T, N> select(Mask<T, N> condition, Vec<T, N> a, Vec<T, N> b) {
    return Vec<T, N>(condition.raw ? a.raw : b.raw);
  }

  // max(x, least), which may turn NaN into least.
  template <typename T, int N>
  static PSPL_INLINE Vec<T, N> clamp_variance(Vec<T, N> x, T least) {
    const Vec<T, N> floor(least);
    return Vec<T, N>(x.raw > floor.raw ? x.raw : floor.raw);
  }

  // (a - b) / (a + b) for a > 0 and b >= 0: in [-1, 1], and exactly 1 for b = 0.
  template <typename T, int N>
  static PSPL_INLINE Vec<T, N> normalized_difference(Vec<T, N> a, Vec<T, N> b) {
    return T(1) - T(2) * (b / (a + b));
  }

  // For x <= 0, which is all that attention() needs. Results below the normal numbers may be 0; NaN stays NaN, whatever
  // its payload.
  template <typename T, int N>
  static PSPL_INLINE Vec<T, N> exp2(Vec<T, N> x) {
    using E = Exp2<T>;
    const Vec<T, N> least(T(-E::kBias));
    x = Vec<T, N>(least.raw > x.raw ? least.raw : x.raw);  // a NaN is not less than anything
    const Vec<T, N> shifted = x + E::kRound;
    const Vec<T, N> f = x - (shifted - E::kRound);
    const Vec<T, N> f_squared = f * f;
    Vec<T, N> power(E::kCoefficient[E::kDegree]);
    for (int i = E::kDegree - 2; i >= 0; i -= 2) {
      const Vec<T, N> pair = multiply_add(f, Vec<T, N>(E::kCoefficient[i + 1]), Vec<T, N>(E::kCoefficient[i]));
      power = multiply_add(power, f_squared, pair);
    }
    return power * Vec<T, N>(shifted.bits() << E::kMantissa);
  }

  template <typename T, int N>
  static PSPL_INLINE Vec<T, N> rsqrt(Vec<T, N> x) {
    using R = InverseRoot<T>;
    const Vec<T, N> half = T(0.5) * x;
    Vec<T, N> y(R::kGuess - (x.bits() >> 1));
    for (int step = 0; step < R::kSteps; ++step) y = y * (T(1.5) - half * y * y);
    return y;
  }
};

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
