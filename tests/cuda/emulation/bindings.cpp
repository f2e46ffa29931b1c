// The launchers of csrc/cuda for Python: memory comes as integer addresses, everything else as plain numbers.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/kernels.h"
#include "cuda/strip_plan.h"
#include "pspl_math.h"

namespace py = pybind11;

namespace {

using pspl::kLeadingDims;

template <typename T>
T* pointer(const py::handle& address) {
  return reinterpret_cast<T*>(address.cast<uintptr_t>());
}

// Five strides in elements: of the leading dimensions, rows, columns.
pspl::Strides strides(const py::handle& tuple) {
  const auto s = tuple.cast<std::array<int64_t, kLeadingDims + 2>>();
  return {{s[0], s[1], s[2]}, s[3], s[4]};
}

pspl::InputImage input(const py::dict& d) {
  return {pointer<const void>(d["data"]), static_cast<pspl::DType>(d["dtype"].cast<int>()), strides(d["stride"])};
}

template <typename T>
pspl::OutputImage<T> output(const py::handle& d) {
  if (d.is_none()) return {};
  return {pointer<T>(d["data"]), strides(d["stride"])};
}

// The fields of ForwardParams by their names.
template <typename T>
pspl::ForwardParams<T> params(const py::dict& d) {
  pspl::ForwardParams<T> p{};
  const auto size = d["size"].cast<std::array<int64_t, kLeadingDims + 2>>();
  std::copy_n(size.begin(), kLeadingDims, p.leading);
  p.height = size[kLeadingDims];
  p.width = size[kLeadingDims + 1];
  p.sr = input(d["sr"]);
  p.hr = input(d["hr"]);
  if (!d["gradient"].is_none()) {
    const auto gradient = d["gradient"].cast<py::dict>();
    p.gradient = {pointer<void>(gradient["data"]), static_cast<pspl::DType>(gradient["dtype"].cast<int>()),
                  strides(gradient["stride"])};
  }
  p.map = output<T>(d["map"]);
  p.output = static_cast<pspl::Output>(d["output"].cast<int>());
  p.padding = static_cast<pspl::Padding>(d["padding"].cast<int>());
  p.distance = static_cast<pspl::Distance>(d["distance"].cast<int>());
  p.radius = d["window_size"].cast<int32_t>() / 2;
  if (p.radius < 0 || p.radius > pspl::kMaxRadius) throw std::invalid_argument("window_size");
  const auto c = d["constants"].cast<std::array<double, pspl::kNumConstants>>();
  pspl::Constants constants;
  std::memcpy(&constants, c.data(), sizeof(constants));
  pspl::set_constants(p, constants, d["loss_weight"].cast<double>());
  p.step = static_cast<T>(d["step"].cast<double>());
  p.step_tensor = pointer<const void>(d["step_tensor"]);
  p.step_dtype = static_cast<pspl::DType>(d["step_dtype"].cast<int>());
  p.loss = pointer<T>(d["loss"]);
  p.stats = pointer<T>(d["stats"]);
  return p;
}

void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error("emulation: the launch failed with cudaError_t " + std::to_string(status));
}

int64_t workspace_size(const py::dict& d) { return pspl::cuda::workspace_size(params<float>(d)); }

pspl::cuda::Device device(int multiprocessors) { return {multiprocessors, 228 * 1024}; }

// The rows of a strip and the blocks of a launch.
std::pair<int, int64_t> plan_strips(int64_t planes, int height, int width, int radius, int resident,
                                    int multiprocessors) {
  const auto plan = pspl::cuda::plan_strips(planes, height, width, radius, resident, {multiprocessors, 0});
  return {plan.rows, pspl::cuda::strip_blocks(plan)};
}

int resident_blocks(int by_registers, int64_t block_bytes, int64_t multiprocessor_bytes) {
  return pspl::cuda::resident_blocks(by_registers, block_bytes, {1, multiprocessor_bytes});
}

template <typename T>
void forward(const py::dict& d, uintptr_t partials, uintptr_t ticket, int multiprocessors, unsigned seed) {
  emulation::order.seed = seed;
  const pspl::cuda::Workspace workspace{reinterpret_cast<double*>(partials), reinterpret_cast<unsigned*>(ticket)};
  check(pspl::cuda::forward<T>(params<T>(d), workspace, device(multiprocessors), nullptr));
}

void backward(uintptr_t saved_gradient, int saved_dtype, uintptr_t grad_output, float sign, uintptr_t gradient,
              int dtype, int64_t numel, int multiprocessors) {
  check(pspl::cuda::backward({reinterpret_cast<const void*>(saved_gradient), static_cast<pspl::DType>(saved_dtype),
                              reinterpret_cast<const float*>(grad_output), sign, reinterpret_cast<void*>(gradient),
                              static_cast<pspl::DType>(dtype), numel},
                             device(multiprocessors), nullptr));
}

void set_approximation(int which) { emulation::approximation = static_cast<emulation::Approximation>(which); }

// Launches go to driver(mangled name of the kernel, blocks, bytes of shared memory, arguments); None: to the emulation.
void set_driver(const py::object& driver) {
  emulation::driver = nullptr;
  if (driver.is_none()) return;
  emulation::driver = [driver](const void* kernel, unsigned blocks, size_t shared_bytes, const std::string& arguments) {
    Dl_info symbol{};
    dladdr(kernel, &symbol);
    driver(symbol.dli_sname, blocks, shared_bytes, py::bytes(arguments));
  };
}

}  // namespace

PYBIND11_MODULE(emulated_kernels, module) {
  module.def("workspace_size", &workspace_size);
  module.def("plan_strips", &plan_strips);
  module.def("resident_blocks", &resident_blocks);
  module.attr("busy_warps") = pspl::cuda::kBusyWarps;
  module.def("forward_float32", &forward<float>);
  module.def("forward_float64", &forward<double>);
  module.def("backward", &backward);
  module.def("has_kernels", [](int sr, int hr) {
    return pspl::cuda::has_kernels(static_cast<pspl::DType>(sr), static_cast<pspl::DType>(hr));
  });
  module.def("set_approximation", &set_approximation);
  module.def("set_driver", &set_driver);

  // The shim's own arithmetic, to be tested.
  module.def("rcp_approx", &emulation::rcp_approx);
  module.def("ex2_approx", &emulation::ex2_approx);
  module.def("rsqrt_approx", &rsqrtf);
  module.def("half_bits", [](double value) { return __double2half(value).bits; });
  module.def("half_value", [](uint16_t bits) { return __half2float({bits}); });
  module.def("bfloat16_bits", [](double value) { return __double2bfloat16(value).bits; });
  module.def("bfloat16_value", [](uint16_t bits) { return __bfloat162float({bits}); });
}
