// From tensors to kernel parameters and back, for every device: check, fill, allocate. Only this directory uses torch,
// through torch_api.h.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../pspl_math.h"
#include "../pspl_params.h"
#include "torch_api.h"

namespace pspl {

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      PSPL_CHECK(false, name, " must be float32, float64, float16 or bfloat16.");
  }
}

template <typename T>
constexpr ScalarType kScalarType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

// Strides of [.., .., C, H, W]. Missing leading dimensions have size 1: their strides are not used.
inline Strides strides_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  const int64_t rank = tensor.dim();
  Strides result{};
  result.column = strides[rank - 1];
  result.row = strides[rank - 2];
  for (int64_t i = 0; i < rank - 2; ++i) result.leading[kLeadingDims - 1 - i] = strides[rank - 3 - i];
  return result;
}

inline InputImage input_image(const Tensor& tensor, const char* name) {
  return {tensor.const_data_ptr(), dtype_of(tensor, name), strides_of(tensor)};
}

// True if the elements fill their memory without gaps or overlap, in any order of the dimensions.
inline bool is_dense(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const int64_t numel = tensor.numel();
  int64_t filled = 1;
  while (filled < numel) {
    size_t next = 0;  // the dimension whose stride is the size of the dimensions found so far
    while (next < sizes.size() && (strides[next] != filled || sizes[next] == 1)) ++next;
    if (next == sizes.size()) return false;
    filled *= sizes[next];
  }
  return true;
}

inline Tensor empty_vector(const Tensor& device_of, int64_t size, ScalarType dtype) {
  return empty_strided(device_of, {size}, {1}, dtype);
}

// torch.empty_like(tensor, dtype=dtype): the tensor's strides if it is dense, as in the fake kernels.
inline Tensor empty_like(const Tensor& tensor, ScalarType dtype) {
  if (is_dense(tensor)) return empty_strided(tensor, tensor.sizes(), tensor.strides(), dtype);
  const Tensor like = empty_like(tensor);
  return like.scalar_type() == dtype ? like : empty_strided(tensor, tensor.sizes(), like.strides(), dtype);
}

template <typename Enum>
bool is_value(int64_t number) {
  return number >= 0 && number < static_cast<int64_t>(Enum::kCount);
}

// The parameters that describe the images.
template <typename T>
ForwardParams<T> image_params(const Tensor& sr, const Tensor& hr) {
  const auto sizes = sr.sizes();
  const int64_t rank = sr.dim();
  PSPL_CHECK(rank >= 3 && rank <= 5, "sr must have 3 to 5 dimensions, but has ", rank, ".");
  PSPL_CHECK(hr.dim() == rank && std::equal(sizes.begin(), sizes.end(), hr.sizes().begin()),
             "sr and hr must have the same shape.");
  PSPL_CHECK(sr.device() == hr.device(), "sr and hr must be on the same device.");
  PSPL_CHECK(sr.numel() > 0, "sr and hr must not be empty.");
  ForwardParams<T> p{};
  p.leading[0] = p.leading[1] = p.leading[2] = 1;
  for (int64_t i = 0; i < rank - 2; ++i) p.leading[kLeadingDims - 1 - i] = sizes[rank - 3 - i];
  p.height = sizes[rank - 2];
  p.width = sizes[rank - 1];
  p.sr = input_image(sr, "sr");
  p.hr = input_image(hr, "hr");
  return p;
}

template <typename T>
void set_step(ForwardParams<T>& p, double step, const std::optional<Tensor>& step_tensor, const Tensor& sr) {
  p.step = static_cast<T>(step);
  if (!step_tensor.has_value()) return;
  PSPL_CHECK(step_tensor->dim() == 0, "step must be a 0-dim tensor.");
  p.step_dtype = dtype_of(*step_tensor, "step");
  PSPL_CHECK(p.step_dtype == DType::kFloat32 || p.step_dtype == DType::kFloat64, "step must be float32 or float64.");
  if (step_tensor->is_cpu()) {
    p.step = read_number<T>(step_tensor->const_data_ptr(), p.step_dtype);
  } else {
    PSPL_CHECK(step_tensor->device() == sr.device(), "step must be on the images' device or on the CPU.");
    p.step_tensor = step_tensor->const_data_ptr();
  }
}

// The operators, for all devices; pspl_cuda/_ops.py has their schemas and says what they return. pspl_cuda/config.py
// checks the same with more detailed messages; the checks here protect operators that are called directly. Backend runs
// a kernel with filled parameters on the device of a tensor, and converts images that its kernels cannot read to the
// compute type:
//   template <typename T> static void forward(const ForwardParams<T>&, const Tensor& on_device);
//   static void backward(const BackwardParams&, const Tensor& on_device);
//   static void make_readable(Tensor& sr, Tensor& hr, ScalarType compute_type);

// The result, the statistics, and the saved gradient, which is empty if no gradient_dtype was given.
using Outputs = std::tuple<Tensor, Tensor, Tensor>;

template <typename Backend>
Outputs run_forward(Tensor sr, Tensor hr, const std::optional<Tensor>& step_tensor, double step,
                    const std::vector<double>& numbers, int64_t window_size, int64_t padding, int64_t distance,
                    Output output, double loss_weight, bool with_stats, std::optional<ScalarType> gradient_dtype) {
  Constants constants;
  PSPL_CHECK(numbers.size() == kNumConstants, "constants must have ", kNumConstants, " numbers, but has ",
             numbers.size(), ".");
  std::memcpy(&constants, numbers.data(), sizeof(constants));
  PSPL_CHECK(window_size >= 1 && window_size <= 2 * kMaxRadius + 1 && window_size % 2 == 1,
             "window_size must be odd, from 1 to ", 2 * kMaxRadius + 1, ", but is ", window_size, ".");
  PSPL_CHECK(is_value<Padding>(padding), "unknown padding ", padding, ".");
  PSPL_CHECK(is_value<Distance>(distance), "unknown distance ", distance, ".");
  PSPL_CHECK(loss_weight > 0, "loss_weight must be above 0, but is ", loss_weight, ".");

  const bool wide = sr.scalar_type() == ScalarType::Double || hr.scalar_type() == ScalarType::Double;
  Backend::make_readable(sr, hr, wide ? ScalarType::Double : ScalarType::Float);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    constexpr ScalarType dtype = kScalarType<T>;
    ForwardParams<T> p = image_params<T>(sr, hr);
    p.padding = static_cast<Padding>(padding);
    p.distance = static_cast<Distance>(distance);
    p.output = output;
    p.radius = static_cast<int32_t>(window_size / 2);
    set_constants(p, constants, loss_weight);
    set_step(p, step, step_tensor, sr);

    const bool reduced = p.output == Output::kMean || p.output == Output::kSum;
    Tensor result = reduced ? empty_strided(sr, {}, {}, dtype) : empty_like(sr, dtype);
    if (reduced) {
      p.loss = static_cast<T*>(result.mutable_data_ptr());
    } else {
      p.map = {static_cast<T*>(result.mutable_data_ptr()), strides_of(result)};
    }
    Tensor stats = empty_vector(sr, with_stats ? kNumStats : 0, dtype);
    if (with_stats) p.stats = static_cast<T*>(stats.mutable_data_ptr());
    Tensor gradient = gradient_dtype ? empty_like(sr, *gradient_dtype) : empty_vector(sr, 0, dtype);
    if (gradient_dtype) {
      p.gradient = {gradient.mutable_data_ptr(), dtype_of(gradient, "saved_gradient"), strides_of(gradient)};
      const bool bfloat16 = *gradient_dtype == ScalarType::BFloat16 && sr.scalar_type() == ScalarType::BFloat16;
      PSPL_CHECK(
          *gradient_dtype == dtype || (bfloat16 && !wide),
          "gradient_dtype must be float64 if an image is float64, else float32 or, for a bfloat16 sr, bfloat16.");
    }
    Backend::template forward<T>(p, sr);
    return Outputs(result, stats, gradient);
  };
  return wide ? run(double{}) : run(float{});
}

inline Output reduction_of(int64_t number) {
  PSPL_CHECK(number >= 0 && number <= static_cast<int64_t>(Output::kLossMap), "unknown reduction ", number, ".");
  return static_cast<Output>(number);
}

template <typename Backend>
std::tuple<Tensor, Tensor> loss_op(Tensor sr, Tensor hr, std::optional<Tensor> step_tensor, double step,
                                   std::vector<double> constants, int64_t window_size, int64_t padding,
                                   int64_t distance, int64_t reduction, double loss_weight, bool with_stats) {
  auto [result, stats, unused] =
      run_forward<Backend>(sr, hr, step_tensor, step, constants, window_size, padding, distance,
                           reduction_of(reduction), loss_weight, with_stats, std::nullopt);
  return {result, stats};
}

template <typename Backend>
Outputs loss_and_gradient_op(Tensor sr, Tensor hr, std::optional<Tensor> step_tensor, double step,
                             std::vector<double> constants, int64_t window_size, int64_t padding, int64_t distance,
                             int64_t reduction, double loss_weight, bool with_stats, ScalarType gradient_dtype) {
  return run_forward<Backend>(sr, hr, step_tensor, step, constants, window_size, padding, distance,
                              reduction_of(reduction), loss_weight, with_stats, gradient_dtype);
}

template <typename Backend>
Tensor map_op(Tensor sr, Tensor hr, std::optional<Tensor> step_tensor, double step, std::vector<double> constants,
              int64_t window_size, int64_t padding, bool attention) {
  const Output output = attention ? Output::kAttentionMap : Output::kSimilarityMap;
  return std::get<0>(run_forward<Backend>(sr, hr, step_tensor, step, constants, window_size, padding,
                                          static_cast<int64_t>(Distance::kL1), output, 1.0, false, std::nullopt));
}

template <typename Backend>
void scale_into(Tensor& gradient, const Tensor& saved_gradient, const Tensor& grad_output, int64_t sign) {
  PSPL_CHECK(sign == 1 || sign == -1, "sign must be 1 or -1, but is ", sign, ".");
  // The gradient is then dense with the same strides, so element i of one belongs to element i of the other.
  PSPL_CHECK(is_dense(saved_gradient), "saved_gradient must be dense.");
  PSPL_CHECK(grad_output.dim() == 0 && grad_output.scalar_type() == ScalarType::Float &&
                 grad_output.device() == saved_gradient.device(),
             "grad_output must be a 0-dim float32 tensor on saved_gradient's device.");
  const BackwardParams p{saved_gradient.const_data_ptr(),
                         dtype_of(saved_gradient, "saved_gradient"),
                         static_cast<const float*>(grad_output.const_data_ptr()),
                         static_cast<float>(sign),
                         gradient.mutable_data_ptr(),
                         dtype_of(gradient, "dtype"),
                         saved_gradient.numel()};
  const bool bfloat16 = p.saved_dtype == DType::kBFloat16 && p.dtype == DType::kBFloat16;
  PSPL_CHECK(p.dtype != DType::kFloat64 && (p.saved_dtype == DType::kFloat32 || bfloat16),
             "saved_gradient must be float32 or, like the gradient, bfloat16; the gradient must not be float64.");
  Backend::backward(p, saved_gradient);
}

template <typename Backend>
Tensor scale_gradient_op(const Tensor& saved_gradient, const Tensor& grad_output, int64_t sign, ScalarType dtype) {
  Tensor gradient = empty_like(saved_gradient, dtype);
  scale_into<Backend>(gradient, saved_gradient, grad_output, sign);
  return gradient;
}

template <typename Backend>
void scale_gradient_in_place_op(Tensor saved_gradient, const Tensor& grad_output) {
  scale_into<Backend>(saved_gradient, saved_gradient, grad_output, 1);
}

}  // namespace pspl

// Binds every operator to a backend; used inside PSPL_OPERATORS.
#define PSPL_BIND_OPERATORS(library, Backend)                                                \
  library.impl("loss", PSPL_OPERATOR((::pspl::loss_op<Backend>)));                           \
  library.impl("loss_and_gradient", PSPL_OPERATOR((::pspl::loss_and_gradient_op<Backend>))); \
  library.impl("map", PSPL_OPERATOR((::pspl::map_op<Backend>)));                             \
  library.impl("scale_gradient", PSPL_OPERATOR((::pspl::scale_gradient_op<Backend>)));       \
  library.impl("scale_gradient_", PSPL_OPERATOR((::pspl::scale_gradient_in_place_op<Backend>)))
