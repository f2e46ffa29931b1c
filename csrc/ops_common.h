// From tensors to Params and back, the same for every device: check, fill, allocate. Only the ops_*.cpp files include
// this; nothing below them knows torch. Uses the LibTorch stable ABI, so that one build serves every later torch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "pspl_math.h"
#include "pspl_params.h"
#include "pspl_taps.h"

// The libraries are loaded by torch.ops.load_library; setuptools wants to find a module's entry point in them all the
// same.
#if defined(_WIN32)
#define PSPL_EXPORT extern "C" __declspec(dllexport)
#else
#define PSPL_EXPORT extern "C" __attribute__((visibility("default")))
#endif
#define PSPL_EMPTY_MODULE(name) \
  PSPL_EXPORT void* PyInit_##name() { return nullptr; }

namespace pspl {

using torch::headeronly::ScalarType;
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

// Strides of [.., C, H, W] with missing leading dimensions in front; their sizes are 1, so any stride will do.
inline Layout layout_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  const int64_t rank = tensor.dim();
  Layout layout{};
  layout.column = strides[rank - 1];
  layout.row = strides[rank - 2];
  for (int64_t i = 0; i < rank - 2; ++i) layout.leading[kLeadingDims - 1 - i] = strides[rank - 3 - i];
  return layout;
}

inline Input input_of(const Tensor& tensor, const char* name) {
  return {tensor.const_data_ptr(), dtype_of(tensor, name), layout_of(tensor)};
}

template <typename T>
Output<T> output_of(Tensor& tensor) {
  return {static_cast<T*>(tensor.mutable_data_ptr()), layout_of(tensor)};
}

// torch.empty_like(tensor, dtype=dtype): the tensor's strides if it is dense, which the fake kernels promise too.
inline Tensor empty_like(const Tensor& tensor, ScalarType dtype) {
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

inline Tensor empty(const Tensor& device_of, int64_t size, ScalarType dtype) {
  return torch::stable::new_empty(device_of, {size}, dtype);
}

inline Tensor empty_scalar(const Tensor& device_of, ScalarType dtype) {
  return torch::stable::new_empty(device_of, {}, dtype);
}

// The arguments of Eq. 3 to 8, as the schemas list them.
struct Schedule {
  std::optional<Tensor> step_tensor;
  double step;
  double alpha;
  double beta;
  double gamma;
  double mu;
};

struct Window {
  int64_t size;
  double sigma;
  double c1;
  double c2;
  int64_t padding;
};

// Everything but the outputs. The Python layer has checked all this with better sentences; this guards the operators
// against being called past it.
template <typename T>
Params<T> fill_params(const Tensor& sr, const Tensor& hr, const Schedule& schedule, const Window& window) {
  const auto sizes = sr.sizes();
  const int64_t rank = sr.dim();
  STD_TORCH_CHECK(rank >= 3 && rank <= 5, "sr must have 3 to 5 dimensions, but has ", rank, ".");
  STD_TORCH_CHECK(hr.dim() == rank && std::equal(sizes.begin(), sizes.end(), hr.sizes().begin()),
                  "sr and hr must have the same shape.");
  STD_TORCH_CHECK(sr.device() == hr.device(), "sr and hr must be on the same device.");
  STD_TORCH_CHECK(sr.numel() > 0, "sr and hr must not be empty.");
  STD_TORCH_CHECK(window.size >= 1 && window.size <= 2 * kMaxRadius + 1 && window.size % 2 == 1,
                  "window_size must be odd, from 1 to ", 2 * kMaxRadius + 1, ", but is ", window.size, ".");
  STD_TORCH_CHECK(window.padding >= 0 && window.padding <= static_cast<int64_t>(Padding::kReplicate),
                  "unknown padding ", window.padding, ".");

  Params<T> p{};
  p.leading[0] = p.leading[1] = p.leading[2] = 1;
  for (int64_t i = 0; i < rank - 2; ++i) p.leading[kLeadingDims - 1 - i] = sizes[rank - 3 - i];
  p.height = sizes[rank - 2];
  p.width = sizes[rank - 1];
  p.sr = input_of(sr, "sr");
  p.hr = input_of(hr, "hr");

  p.padding = static_cast<Padding>(window.padding);
  p.radius = static_cast<int32_t>(window.size / 2);
  fill_taps(p, window.sigma);
  p.twice_c1 = static_cast<T>(2 * window.c1);
  p.twice_c2 = static_cast<T>(2 * window.c2);

  p.alpha = static_cast<T>(schedule.alpha);
  p.beta = static_cast<T>(schedule.beta);
  p.gamma = static_cast<T>(schedule.gamma);
  p.mu = static_cast<T>(schedule.mu);
  p.step = static_cast<T>(schedule.step);
  if (schedule.step_tensor.has_value()) {
    const Tensor& step = *schedule.step_tensor;
    STD_TORCH_CHECK(step.dim() == 0, "step must be a 0-dim tensor.");
    const DType dtype = dtype_of(step, "step");
    STD_TORCH_CHECK(dtype == DType::kFloat32 || dtype == DType::kFloat64, "step must be float32 or float64.");
    if (step.is_cpu()) {
      p.step = read_number<T>(step.const_data_ptr(), dtype);
    } else {
      STD_TORCH_CHECK(step.device() == sr.device(), "step must be on the images' device or on the CPU.");
      p.step_tensor = step.const_data_ptr();
      p.step_dtype = dtype;
    }
  }
  return p;
}

inline bool needs_float64(const Tensor& sr, const Tensor& hr) {
  return sr.scalar_type() == ScalarType::Double || hr.scalar_type() == ScalarType::Double;
}

// The operators, once for all devices. Backend says how to run a filled Params on the device of a tensor:
//   template <typename T> static void forward(const Params<T>&, const Tensor& on_device);
//   template <typename T> static void scale(const ScaleParams<T>&, const Tensor& on_device);
template <typename Backend, typename T>
std::tuple<Tensor, Tensor, Tensor> loss_in(const Tensor& sr, const Tensor& hr, const Schedule& schedule,
                                           const Window& window, int64_t distance, double eps, int64_t reduction,
                                           bool with_residual, bool with_stats) {
  STD_TORCH_CHECK(distance >= 0 && distance <= static_cast<int64_t>(Distance::kCharbonnier), "unknown distance ",
                  distance, ".");
  STD_TORCH_CHECK(reduction >= 0 && reduction <= static_cast<int64_t>(Reduction::kNone), "unknown reduction ",
                  reduction, ".");
  Params<T> p = fill_params<T>(sr, hr, schedule, window);
  const ScalarType dtype = kScalarType<T>;
  const bool per_pixel = static_cast<Reduction>(reduction) == Reduction::kNone;
  p.distance = static_cast<Distance>(distance);
  p.eps_squared = static_cast<T>(eps * eps);
  p.loss_scale = static_cast<Reduction>(reduction) == Reduction::kMean ? 1.0 / static_cast<double>(p.numel()) : 1.0;

  Tensor loss = per_pixel ? empty_like(sr, dtype) : empty_scalar(sr, dtype);
  Tensor residual = with_residual ? empty_like(sr, dtype) : empty(sr, 0, dtype);
  Tensor stats = empty(sr, with_stats ? kNumStats : 0, dtype);
  if (per_pixel) {
    p.map = output_of<T>(loss);
    p.map_kind = MapKind::kLoss;
  } else {
    p.loss = static_cast<T*>(loss.mutable_data_ptr());
  }
  if (with_residual) p.residual = output_of<T>(residual);
  if (with_stats) p.stats = static_cast<T*>(stats.mutable_data_ptr());
  Backend::template forward<T>(p, sr);
  return {loss, residual, stats};
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> loss_op(const Tensor& sr, const Tensor& hr, std::optional<Tensor> step_tensor,
                                           double step, double alpha, double beta, double gamma, double mu,
                                           int64_t window_size, double sigma, double c1, double c2, int64_t padding,
                                           int64_t distance, double eps, int64_t reduction, bool with_residual,
                                           bool with_stats) {
  const Schedule schedule{std::move(step_tensor), step, alpha, beta, gamma, mu};
  const Window window{window_size, sigma, c1, c2, padding};
  const auto run = needs_float64(sr, hr) ? loss_in<Backend, double> : loss_in<Backend, float>;
  return run(sr, hr, schedule, window, distance, eps, reduction, with_residual, with_stats);
}

template <typename Backend, typename T>
Tensor map_in(const Tensor& sr, const Tensor& hr, const Schedule& schedule, const Window& window, int64_t kind) {
  STD_TORCH_CHECK(
      kind == static_cast<int64_t>(MapKind::kSimilarity) || kind == static_cast<int64_t>(MapKind::kAttention),
      "unknown map ", kind, ".");
  Params<T> p = fill_params<T>(sr, hr, schedule, window);
  Tensor map = empty_like(sr, kScalarType<T>);
  p.map = output_of<T>(map);
  p.map_kind = static_cast<MapKind>(kind);
  p.eps_squared = T(1);
  Backend::template forward<T>(p, sr);
  return map;
}

template <typename Backend>
Tensor map_op(const Tensor& sr, const Tensor& hr, std::optional<Tensor> step_tensor, double step, double alpha,
              double beta, double gamma, double mu, int64_t window_size, double sigma, double c1, double c2,
              int64_t padding, int64_t kind) {
  const Schedule schedule{std::move(step_tensor), step, alpha, beta, gamma, mu};
  const Window window{window_size, sigma, c1, c2, padding};
  const auto run = needs_float64(sr, hr) ? map_in<Backend, double> : map_in<Backend, float>;
  return run(sr, hr, schedule, window, kind);
}

template <typename Backend, typename T>
void scale_into(Tensor& gradient, const Tensor& residual, const Tensor& upstream, double factor) {
  // Both are dense with the same strides, so element i of one belongs to element i of the other.
  const ScaleParams<T> p{static_cast<const T*>(residual.const_data_ptr()),
                         static_cast<const T*>(upstream.const_data_ptr()),
                         factor,
                         gradient.mutable_data_ptr(),
                         dtype_of(gradient, "dtype"),
                         residual.numel()};
  Backend::template scale<T>(p, residual);
}

// True if the elements fill their memory without gaps or overlap, in whatever order of the dimensions.
inline bool is_dense(const Tensor& tensor) {
  int64_t filled = 1;
  while (filled < tensor.numel()) {
    int64_t next = 0;  // the dimension whose stride is what the dimensions so far fill
    while (next < tensor.dim() && (tensor.strides()[next] != filled || tensor.sizes()[next] == 1)) ++next;
    if (next == tensor.dim()) return false;
    filled *= tensor.sizes()[next];
  }
  return true;
}

inline void check_scale(const Tensor& residual, const Tensor& upstream, ScalarType dtype) {
  const ScalarType compute = residual.scalar_type();
  STD_TORCH_CHECK(compute == ScalarType::Float || compute == ScalarType::Double,
                  "residual must be float32 or float64.");
  STD_TORCH_CHECK(is_dense(residual), "residual must be dense.");
  STD_TORCH_CHECK(upstream.dim() == 0 && upstream.scalar_type() == compute && upstream.device() == residual.device(),
                  "upstream must be a 0-dim tensor of the residual's dtype and device.");
  STD_TORCH_CHECK(dtype != ScalarType::Double || compute == ScalarType::Double,
                  "a float64 gradient needs a float64 residual.");
}

template <typename Backend>
Tensor scale_op(const Tensor& residual, const Tensor& upstream, double factor, ScalarType dtype) {
  check_scale(residual, upstream, dtype);
  Tensor gradient = empty_like(residual, dtype);
  const bool wide = residual.scalar_type() == ScalarType::Double;
  (wide ? scale_into<Backend, double> : scale_into<Backend, float>)(gradient, residual, upstream, factor);
  return gradient;
}

template <typename Backend>
void scale_in_place_op(Tensor residual, const Tensor& upstream, double factor) {
  check_scale(residual, upstream, residual.scalar_type());
  const bool wide = residual.scalar_type() == ScalarType::Double;
  (wide ? scale_into<Backend, double> : scale_into<Backend, float>)(residual, residual, upstream, factor);
}

}  // namespace pspl

// Binds every operator to a backend; used inside STABLE_TORCH_LIBRARY_IMPL.
#define PSPL_BIND_OPERATORS(library, Backend)                   \
  library.impl("loss", TORCH_BOX(&::pspl::loss_op<Backend>));   \
  library.impl("map", TORCH_BOX(&::pspl::map_op<Backend>));     \
  library.impl("scale", TORCH_BOX(&::pspl::scale_op<Backend>)); \
  library.impl("scale_", TORCH_BOX(&::pspl::scale_in_place_op<Backend>))
