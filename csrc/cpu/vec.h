// N numbers side by side, over the vector extensions of g++ and clang, with the operators and primitives that the
// formulas of pspl_math.h ask for. Argument-dependent lookup finds them, so the formulas need not know of vectors.
//
// Included inside the namespace of one instruction set (kernel.h): nothing here may be shared between files that
// are compiled with different -m flags.

#define PSPL_INLINE inline __attribute__((always_inline))

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

PSPL_VEC Vec<T, N> select(Mask<T, N> condition, Vec<T, N> a, Vec<T, N> b) {
  return Vec<T, N>(condition.raw ? a.raw : b.raw);
}

// x where the mask has ones, 0 where it has zeros, whatever x is there.
PSPL_VEC Vec<T, N> only(Vec<T, N> mask, Vec<T, N> x) { return Vec<T, N>(mask.bits() & x.bits()); }

template <typename T>
constexpr typename BitsOf<T>::type kSignBit = typename BitsOf<T>::type(1) << (8 * sizeof(T) - 1);

PSPL_VEC Vec<T, N> absolute(Vec<T, N> x) { return Vec<T, N>(x.bits() & ~kSignBit<T>); }

PSPL_VEC Vec<T, N> copy_sign(Vec<T, N> magnitude, Vec<T, N> sign) {
  return Vec<T, N>((magnitude.bits() & ~kSignBit<T>) | (sign.bits() & kSignBit<T>));
}

PSPL_VEC Vec<T, N> clamp_variance(Vec<T, N> x, T least) {
  const Vec<T, N> floor(least);
  return Vec<T, N>(x.raw > floor.raw ? x.raw : floor.raw);
}

PSPL_VEC Vec<T, N> balance(Vec<T, N> same, Vec<T, N> apart) { return T(1) - T(2) * (apart / (same + apart)); }

// 2^f for |f| <= 1/2 is a polynomial: interpolation at the Chebyshev nodes of (2^f - 1) / f, so that 2^0 is exactly 1.
// Adding kRound pushes the fraction out of the mantissa, which leaves the nearest integer in the low bits.
template <typename T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr int kDegree = 6, kMantissa = 23, kSmallest = -126;
  static constexpr float kRound = 0x1.8p23f;
  static constexpr float kCoefficient[kDegree + 1] = {1.0f,         0.6931472f,    0.2402265f,    0.05550357f,
                                                      0.009618083f, 0.0013390863f, 0.00015453163f};
};
template <>
struct Exp2<double> {
  static constexpr int kDegree = 10, kMantissa = 52, kSmallest = -1022;
  static constexpr double kRound = 0x1.8p52;
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

// For x <= 0, all that attention() asks for. Below the normal numbers 0, -infinity included; NaN stays NaN.
PSPL_VEC Vec<T, N> exp2_of(Vec<T, N> x) {
  using E = Exp2<T>;
  const Vec<T, N> shifted = x + E::kRound;
  const Vec<T, N> f = x - (shifted - E::kRound);
  Vec<T, N> power(E::kCoefficient[E::kDegree]);
  for (int i = E::kDegree - 1; i >= 0; --i) power = multiply_add(power, f, Vec<T, N>(E::kCoefficient[i]));
  const Vec<T, N> scaled(power.bits() + (shifted.bits() << E::kMantissa));
  return select(x < Vec<T, N>(T(E::kSmallest)), Vec<T, N>(T(0)), scaled);
}

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

PSPL_VEC Vec<T, N> reciprocal_sqrt(Vec<T, N> x) {
  using R = InverseRoot<T>;
  const Vec<T, N> half = T(0.5) * x;
  Vec<T, N> y(R::kGuess - (x.bits() >> 1));
  for (int step = 0; step < R::kSteps; ++step) y = y * (T(1.5) - half * y * y);
  return y;
}

#undef PSPL_VEC
