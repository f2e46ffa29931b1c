// What the bindings use of torch, through the LibTorch stable ABI (torch 2.10 and later): one build works with every
// later torch. torch_aten.h has the same names for older ones.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.10
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

#define PSPL_CHECK STD_TORCH_CHECK
// PSPL_OPERATORS(CPU, library) { library.impl("name", PSPL_OPERATOR(function)); } registers kernels of a dispatch key.
#define PSPL_OPERATORS(Key, library) STABLE_TORCH_LIBRARY_IMPL(pspl_cuda, Key, library)
#define PSPL_OPERATOR(function) TORCH_BOX(&function)

namespace pspl {

using torch::headeronly::ScalarType;
using IntArrayRef = torch::headeronly::IntHeaderOnlyArrayRef;
using torch::stable::empty_like;
using torch::stable::parallel_for;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;  // of a GPU, by index

inline int32_t dtype_code(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    default:
      STD_TORCH_CHECK(false, "the dtype must be float32, float64, float16 or bfloat16.");
  }
}

// By the C function below the stable ABI's, because it calls torch's dispatcher, which would take most of the time of a
// small image.
inline Tensor empty_strided(const Tensor& device_of, IntArrayRef sizes, IntArrayRef strides, ScalarType dtype) {
  int32_t device_type = 0;
  AtenTensorHandle result = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(device_of.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype_code(dtype), device_type,
                                                         device_of.get_device_index(), &result));
  return Tensor(result);
}

inline Tensor zero_int32(const Tensor& device_of) { return torch::stable::new_zeros(device_of, {1}, ScalarType::Int); }

inline Tensor convert(const Tensor& tensor, ScalarType dtype) { return torch::stable::to(tensor, dtype); }

#ifdef USE_CUDA
inline void* current_cuda_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}
#endif

}  // namespace pspl
