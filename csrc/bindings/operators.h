// From tensors to kernel parameters and back, for every device: check, fill, allocate. Only this directory uses torch,
// through the LibTorch stable ABI, so that one build works with every later torch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>

#include "../pspl_math.h"
#include "../pspl_params.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.10
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace pspl {

using torch::headeronly::ScalarType;
using IntArrayRef = torch::headeronly::IntHeaderOnlyArrayRef;
using torch::stable::Tensor;

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
      STD_TORCH_CHECK(false, name, " must be float32, float64, float16 or bfloat16.");
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

inline GradientImage gradient_image(Tensor& tensor) {
  return {tensor.mutable_data_ptr(), dtype_of(tensor, "saved_gradient"), strides_of(tensor)};
}

template <typename T>
OutputImage<T> output_image(Tensor& tensor) {
  return {static_cast<T*>(tensor.mutable_data_ptr()), strides_of(tensor)};
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

// Not by torch's dispatcher: its calls would take most of the time of a small image.
inline Tensor empty_strided(const Tensor& device_of, IntArrayRef sizes, IntArrayRef strides, ScalarType dtype) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  int32_t device_type = 0;
  AtenTensorHandle result = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(device_of.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               to<int32_t>(from(dtype)), device_type, device_of.get_device_index(), &result));
  return Tensor(result);
}

inline Tensor empty_vector(const Tensor& device_of, int64_t size, ScalarType dtype) {
  return empty_strided(device_of, {size}, {1}, dtype);
}

// torch.empty_like(tensor, dtype=dtype): the tensor's strides if it is dense, as in the fake kernels.
inline Tensor empty_like(const Tensor& tensor, ScalarType dtype) {
  if (is_dense(tensor)) return empty_strided(tensor, tensor.sizes(), tensor.strides(), dtype);
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(tensor),
                                    from(std::optional<ScalarType>(dtype)),
                                    from(std::optional<torch::headeronly::Layout>()),
                                    from(std::optional<torch::stable::Device>()),
                                    from(std::optional<bool>()),
                                    from(std::optional<torch::headeronly::MemoryFormat>())};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The schema's arguments between the images and the outputs (pspl_cuda/_ops.py).
struct Constants {
  double alpha, beta, gamma, mu;
  int64_t window_size;
  double sigma, c1, c2;
  int64_t padding;
  int64_t distance;
  double eps, loss_weight;
  int64_t gradient_exponent;
};

// All parameters except the outputs. pspl_cuda/config.py checks the same with more detailed messages; these checks
// protect operators that are called directly.
template <typename T>
ForwardParams<T> fill_params(const Tensor& sr, const Tensor& hr, const std::optional<Tensor>& step_tensor, double step,
                             const Constants& constants, int64_t output) {
  const auto sizes = sr.sizes();
  const int64_t rank = sr.dim();
  STD_TORCH_CHECK(rank >= 3 && rank <= 5, "sr must have 3 to 5 dimensions, but has ", rank, ".");
  STD_TORCH_CHECK(hr.dim() == rank && std::equal(sizes.begin(), sizes.end(), hr.sizes().begin()),
                  "sr and hr must have the same shape.");
  STD_TORCH_CHECK(sr.device() == hr.device(), "sr and hr must be on the same device.");
  STD_TORCH_CHECK(sr.numel() > 0, "sr and hr must not be empty.");
  STD_TORCH_CHECK(
      constants.window_size >= 1 && constants.window_size <= 2 * kMaxRadius + 1 && constants.window_size % 2 == 1,
      "window_size must be odd, from 1 to ", 2 * kMaxRadius + 1, ", but is ", constants.window_size, ".");
  STD_TORCH_CHECK(constants.padding >= 0 && constants.padding <= static_cast<int64_t>(Padding::kReplicate),
                  "unknown padding ", constants.padding, ".");
  STD_TORCH_CHECK(constants.distance >= 0 && constants.distance <= static_cast<int64_t>(Distance::kCharbonnier),
                  "unknown distance ", constants.distance, ".");
  STD_TORCH_CHECK(output >= 0 && output <= static_cast<int64_t>(Output::kAttentionMap), "unknown output ", output, ".");
  STD_TORCH_CHECK(std::abs(constants.gradient_exponent) < 1000, "gradient_exponent is ", constants.gradient_exponent,
                  ".");
  STD_TORCH_CHECK(constants.loss_weight > 0, "loss_weight must be above 0, but is ", constants.loss_weight, ".");

  ForwardParams<T> p{};
  p.leading[0] = p.leading[1] = p.leading[2] = 1;
  for (int64_t i = 0; i < rank - 2; ++i) p.leading[kLeadingDims - 1 - i] = sizes[rank - 3 - i];
  p.height = sizes[rank - 2];
  p.width = sizes[rank - 1];
  p.sr = input_image(sr, "sr");
  p.hr = input_image(hr, "hr");

  p.padding = static_cast<Padding>(constants.padding);
  p.distance = static_cast<Distance>(constants.distance);
  p.radius = static_cast<int32_t>(constants.window_size / 2);
  fill_taps(p, constants.sigma);
  p.twice_c1 = static_cast<T>(2 * constants.c1);
  p.twice_c2 = static_cast<T>(2 * constants.c2);
  p.alpha = static_cast<T>(constants.alpha);
  p.beta = static_cast<T>(constants.beta);
  p.mu = static_cast<T>(constants.mu);
  p.output = static_cast<Output>(output);
  const double weight = p.output == Output::kAttentionMap ? 1.0 : constants.loss_weight;
  const double elements = p.output == Output::kMean ? static_cast<double>(p.numel()) : 1.0;
  fold_scale(p, constants.gamma, constants.eps, weight / elements, static_cast<int>(constants.gradient_exponent));

  p.step = static_cast<T>(step);
  if (step_tensor.has_value()) {
    STD_TORCH_CHECK(step_tensor->dim() == 0, "step must be a 0-dim tensor.");
    const DType dtype = dtype_of(*step_tensor, "step");
    STD_TORCH_CHECK(dtype == DType::kFloat32 || dtype == DType::kFloat64, "step must be float32 or float64.");
    if (step_tensor->is_cpu()) {
      p.step = read_number<T>(step_tensor->const_data_ptr(), dtype);
    } else {
      STD_TORCH_CHECK(step_tensor->device() == sr.device(), "step must be on the images' device or on the CPU.");
      p.step_tensor = step_tensor->const_data_ptr();
      p.step_dtype = dtype;
    }
  }
  return p;
}

// The operators, for all devices. Backend runs a kernel with filled parameters on the device of a tensor:
//   template <typename T> static void forward(const ForwardParams<T>&, const Tensor& on_device);
//   template <typename T> static void backward(const BackwardParams<T>&, const Tensor& on_device);
template <typename Backend, typename T>
std::tuple<Tensor, Tensor, Tensor> forward_in(ForwardParams<T> p, const Tensor& sr,
                                              std::optional<ScalarType> gradient_dtype, bool with_stats) {
  constexpr ScalarType dtype = kScalarType<T>;
  const bool reduced = p.output == Output::kMean || p.output == Output::kSum;
  Tensor result = reduced ? empty_strided(sr, {}, {}, dtype) : empty_like(sr, dtype);
  Tensor gradient = gradient_dtype ? empty_like(sr, *gradient_dtype) : empty_vector(sr, 0, dtype);
  Tensor stats = empty_vector(sr, with_stats ? kNumStats : 0, dtype);
  if (reduced) {
    p.loss = static_cast<T*>(result.mutable_data_ptr());
  } else {
    p.map = output_image<T>(result);
  }
  if (gradient_dtype) p.gradient = gradient_image(gradient);
  STD_TORCH_CHECK(
      sizeof(T) == 4 ? p.gradient.dtype != DType::kFloat64 : !gradient_dtype || p.gradient.dtype == DType::kFloat64,
      "gradient_dtype must be float64 if an image is float64, and only then.");
  if (with_stats) p.stats = static_cast<T*>(stats.mutable_data_ptr());
  Backend::template forward<T>(p, sr);
  return {result, gradient, stats};
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> forward_op(const Tensor& sr, const Tensor& hr, std::optional<Tensor> step_tensor,
                                              double step, double alpha, double beta, double gamma, double mu,
                                              int64_t window_size, double sigma, double c1, double c2, int64_t padding,
                                              int64_t distance, double eps, double loss_weight,
                                              int64_t gradient_exponent, int64_t output,
                                              std::optional<ScalarType> gradient_dtype, bool with_stats) {
  const Constants constants{alpha,   beta,     gamma, mu,          window_size,      sigma, c1, c2,
                            padding, distance, eps,   loss_weight, gradient_exponent};
  const auto run = [&](auto params) { return forward_in<Backend>(params, sr, gradient_dtype, with_stats); };
  const bool wide = sr.scalar_type() == ScalarType::Double || hr.scalar_type() == ScalarType::Double;
  return wide ? run(fill_params<double>(sr, hr, step_tensor, step, constants, output))
              : run(fill_params<float>(sr, hr, step_tensor, step, constants, output));
}

template <typename Backend>
void backward_into(Tensor& gradient, const Tensor& saved_gradient, const Tensor& grad_output, double factor) {
  const ScalarType compute = grad_output.scalar_type();
  const ScalarType saved = saved_gradient.scalar_type();
  const ScalarType dtype = gradient.scalar_type();
  // The gradient is then dense with the same strides, so element i of one belongs to element i of the other.
  STD_TORCH_CHECK(is_dense(saved_gradient), "saved_gradient must be dense.");
  STD_TORCH_CHECK(grad_output.dim() == 0 && (compute == ScalarType::Float || compute == ScalarType::Double) &&
                      grad_output.device() == saved_gradient.device(),
                  "grad_output must be a 0-dim float32 or float64 tensor on saved_gradient's device.");
  STD_TORCH_CHECK(saved == compute || (saved == dtype && compute == ScalarType::Float),
                  "saved_gradient must have the dtype of grad_output, or that of the gradient with a float32 "
                  "grad_output.");
  STD_TORCH_CHECK(dtype != ScalarType::Double || compute == ScalarType::Double,
                  "a float64 gradient needs a float64 grad_output.");
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const BackwardParams<T> p{saved_gradient.const_data_ptr(),
                              dtype_of(saved_gradient, "saved_gradient"),
                              static_cast<const T*>(grad_output.const_data_ptr()),
                              static_cast<T>(factor),
                              gradient.mutable_data_ptr(),
                              dtype_of(gradient, "dtype"),
                              saved_gradient.numel()};
    Backend::template backward<T>(p, saved_gradient);
  };
  compute == ScalarType::Double ? run(double{}) : run(float{});
}

template <typename Backend>
Tensor backward_op(const Tensor& saved_gradient, const Tensor& grad_output, double factor, ScalarType dtype) {
  Tensor gradient = empty_like(saved_gradient, dtype);
  backward_into<Backend>(gradient, saved_gradient, grad_output, factor);
  return gradient;
}

template <typename Backend>
void backward_in_place_op(Tensor saved_gradient, const Tensor& grad_output, double factor) {
  backward_into<Backend>(saved_gradient, saved_gradient, grad_output, factor);
}

}  // namespace pspl

// Binds every operator to a backend; used inside STABLE_TORCH_LIBRARY_IMPL.
#define PSPL_BIND_OPERATORS(library, Backend)                         \
  library.impl("forward", TORCH_BOX(&::pspl::forward_op<Backend>));   \
  library.impl("backward", TORCH_BOX(&::pspl::backward_op<Backend>)); \
  library.impl("backward_", TORCH_BOX(&::pspl::backward_in_place_op<Backend>))
