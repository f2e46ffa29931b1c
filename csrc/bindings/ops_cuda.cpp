// The operators on CUDA tensors: device guard, current stream, workspace from torch's allocator, launch check.
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

#include "../cuda/kernels.h"
#include "operators.h"

namespace pspl {
namespace {

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  const bool not_built = status == cudaErrorNoKernelImageForDevice;
  PSPL_CHECK(false, "pspl_cuda: the kernel launch failed: ", cudaGetErrorString(status), ".",
             not_built ? " pspl_cuda.backend_info() lists the architectures that were built; set "
                         "TORCH_CUDA_ARCH_LIST to that of this device and reinstall."
                       : "");
}

cudaStream_t current_stream(const Tensor& on_device) {
  return static_cast<cudaStream_t>(current_cuda_stream(on_device.get_device()));
}

cuda::Device gpu_of(const Tensor& on_device) {
  const auto get = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, on_device.get_device()));
    return value;
  };
  return {get(cudaDevAttrMultiProcessorCount), get(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
}

// Identifies the last block of a launch. A launch leaves the counter at 0, so the launches of one stream share one. A
// captured graph may be replayed on any stream, in parallel with others: it has its own counter, zeroed in the graph.
Tensor ticket(const Tensor& on_device, cudaStream_t stream) {
  const auto fresh = [&] { return zero_int32(on_device); };
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &capture));
  if (capture != cudaStreamCaptureStatusNone) return fresh();

  using Key = std::pair<int, cudaStream_t>;
  // Never destroyed, because torch's allocator may be destroyed first at exit.
  static auto& tickets = *new std::map<Key, Tensor>();
  static auto& mutex = *new std::mutex();
  const std::lock_guard<std::mutex> lock(mutex);
  const Key key{on_device.get_device(), stream};
  auto found = tickets.find(key);
  if (found == tickets.end()) found = tickets.emplace(key, fresh()).first;
  return found->second;
}

struct CudaBackend {
  // Pairs of dtypes without a kernel are rare. hr is converted first, because the gradient may have sr's dtype.
  static void make_readable(Tensor& sr, Tensor& hr, ScalarType compute_type) {
    for (Tensor* image : {&hr, &sr}) {
      if (cuda::has_kernels(dtype_of(sr, "sr"), dtype_of(hr, "hr"))) return;
      *image = convert(*image, compute_type);
    }
  }

  template <typename T>
  static void forward(const ForwardParams<T>& params, const Tensor& on_device) {
    const DeviceGuard guard(on_device.get_device());
    const cudaStream_t stream = current_stream(on_device);
    const cuda::Device device = gpu_of(on_device);
    if (params.loss == nullptr && params.stats == nullptr) {
      check(cuda::forward<T>(params, {nullptr, nullptr}, device, stream));
      return;
    }
    Tensor partials = empty_vector(on_device, cuda::workspace_size(params), ScalarType::Double);
    Tensor counter = ticket(on_device, stream);
    const cuda::Workspace workspace{static_cast<double*>(partials.mutable_data_ptr()),
                                    static_cast<unsigned*>(counter.mutable_data_ptr())};
    check(cuda::forward<T>(params, workspace, device, stream));
  }

  static void backward(const BackwardParams& params, const Tensor& on_device) {
    const DeviceGuard guard(on_device.get_device());
    check(cuda::backward(params, gpu_of(on_device), current_stream(on_device)));
  }
};

}  // namespace
}  // namespace pspl

PSPL_OPERATORS(CUDA, library) { PSPL_BIND_OPERATORS(library, ::pspl::CudaBackend); }
