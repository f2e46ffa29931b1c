// What the bindings use of torch, through its C++ API (torch 2.4 to 2.9): a build works with torch of the same minor
// version. torch_stable.h has the same names for later ones, and explains them.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/library.h>

#define PSPL_CHECK TORCH_CHECK
#define PSPL_OPERATORS(Key, library) TORCH_LIBRARY_IMPL(pspl_cuda, Key, library)
#define PSPL_OPERATOR(function) (&function)

namespace pspl {

using at::empty_like;
using at::IntArrayRef;
using at::parallel_for;
using at::ScalarType;
using at::Tensor;

class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t index) : guard_(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index))) {}

 private:
  at::DeviceGuard guard_;
};

inline Tensor empty_strided(const Tensor& device_of, IntArrayRef sizes, IntArrayRef strides, ScalarType dtype) {
  return at::empty_strided(sizes, strides, device_of.options().dtype(dtype));
}

inline Tensor zero_int32(const Tensor& device_of) { return device_of.new_zeros({1}, at::kInt); }

inline Tensor convert(const Tensor& tensor, ScalarType dtype) { return tensor.to(dtype); }

#ifdef USE_CUDA
inline void* current_cuda_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS, "no current CUDA stream.");
  return stream;
}
#endif

}  // namespace pspl
