// The launchers of csrc/cuda for Python: memory comes as integer addresses, everything else as plain numbers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "pspl_taps.h"

namespace py = pybind11;

namespace {

using pspl::kLeadingDims;

template <typename T>
T* pointer(const py::handle& address) {
  return reinterpret_cast<T*>(address.cast<uintptr_t>());
}

// Five strides in elements: of the leading dimensions, rows, columns.
pspl::Layout layout(const py::handle& strides) {
  const auto s = strides.cast<std::array<int64_t, kLeadingDims + 2>>();
  return {{s[0], s[1], s[2]}, s[3], s[4]};
}

pspl::Input input(const py::dict& d) {
  return {pointer<const void>(d["data"]), static_cast<pspl::DType>(d["dtype"].cast<int>()), layout(d["stride"])};
}

template <typename T>
pspl::Output<T> output(const py::handle& d) {
  if (d.is_none()) return {};
  return {pointer<T>(d["data"]), layout(d["stride"])};
}

// The fields of Params by their names.
template <typename T>
pspl::Params<T> params(const py::dict& d) {
  pspl::Params<T> p{};
  const auto size = d["size"].cast<std::array<int64_t, kLeadingDims + 2>>();
  std::copy_n(size.begin(), kLeadingDims, p.leading);
  p.height = size[kLeadingDims];
  p.width = size[kLeadingDims + 1];
  p.sr = input(d["sr"]);
  p.hr = input(d["hr"]);
  p.residual = output<T>(d["residual"]);
  p.map = output<T>(d["map"]);
  p.map_kind = static_cast<pspl::MapKind>(d["map_kind"].cast<int>());
  p.padding = static_cast<pspl::Padding>(d["padding"].cast<int>());
  p.distance = static_cast<pspl::Distance>(d["distance"].cast<int>());
  p.radius = d["radius"].cast<int32_t>();
  if (p.radius < 0 || p.radius > pspl::kMaxRadius) throw std::invalid_argument("radius");
  pspl::fill_taps(p, d["sigma"].cast<double>());
  const auto number = [&](const char* name) { return static_cast<T>(d[name].cast<double>()); };
  p.twice_c1 = number("twice_c1");
  p.twice_c2 = number("twice_c2");
  p.alpha = number("alpha");
  p.beta = number("beta");
  p.gamma = number("gamma");
  p.mu = number("mu");
  p.eps_squared = number("eps_squared");
  p.step = number("step");
  p.step_tensor = pointer<const void>(d["step_tensor"]);
  p.step_dtype = static_cast<pspl::DType>(d["step_dtype"].cast<int>());
  p.loss_scale = d["loss_scale"].cast<double>();
  p.loss = pointer<T>(d["loss"]);
  p.stats = pointer<T>(d["stats"]);
  return p;
}

void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error("emulation: the launch failed with cudaError_t " + std::to_string(status));
}

template <typename T>
int64_t forward_partials(const py::dict& d, int multiprocessors) {
  return pspl::cuda::forward_partials<T>(params<T>(d), multiprocessors);
}

template <typename T>
void forward(const py::dict& d, uintptr_t partials, uintptr_t ticket, int multiprocessors, unsigned seed) {
  emulation::order.seed = seed;
  const pspl::cuda::Scratch scratch{reinterpret_cast<double*>(partials), reinterpret_cast<unsigned*>(ticket)};
  check(pspl::cuda::forward<T>(params<T>(d), scratch, multiprocessors, nullptr));
}

template <typename T>
void scale(uintptr_t residual, uintptr_t upstream, double factor, uintptr_t gradient, int dtype, int64_t numel) {
  check(pspl::cuda::scale<T>({reinterpret_cast<const T*>(residual), reinterpret_cast<const T*>(upstream), factor,
                              reinterpret_cast<void*>(gradient), static_cast<pspl::DType>(dtype), numel},
                             nullptr));
}

}  // namespace

PYBIND11_MODULE(emulated_kernels, module) {
  module.def("forward_partials_float32", &forward_partials<float>);
  module.def("forward_partials_float64", &forward_partials<double>);
  module.def("forward_float32", &forward<float>);
  module.def("forward_float64", &forward<double>);
  module.def("scale_float32", &scale<float>);
  module.def("scale_float64", &scale<double>);

  // The shim's own arithmetic, to be tested.
  module.def("half_bits", [](double value) { return __double2half(value).bits; });
  module.def("half_value", [](uint16_t bits) { return __half2float({bits}); });
  module.def("bfloat16_bits", [](double value) { return __double2bfloat16(value).bits; });
  module.def("bfloat16_value", [](uint16_t bits) { return __bfloat162float({bits}); });
}
