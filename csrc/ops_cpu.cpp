// The operators' schemas, and their CPU implementation.
#include "cpu/launch.h"
#include "ops_common.h"

PSPL_EMPTY_MODULE(_cpu)

// step is used where step_tensor is None. The numbers behind padding, distance, reduction and kind are those of the
// enums in pspl_params.h. Nothing here differentiates: pspl_cuda/autograd.py does.
STABLE_TORCH_LIBRARY(pspl_cuda, library) {
  // Returns the loss (0-dim; sr's shape for reduction none), the weighted residual (sr's shape and layout; empty unless
  // asked for) and the statistics ([4]; empty unless asked for), all in the compute type.
  library.def(
      "loss(Tensor sr, Tensor hr, Tensor? step_tensor, float step, float alpha, float beta, float gamma, float mu, "
      "int window_size, float sigma, float c1, float c2, int padding, int distance, float eps, int reduction, "
      "bool with_residual, bool with_stats) -> (Tensor loss, Tensor residual, Tensor stats)");
  // Returns M_s or M_a, of sr's shape and layout, in the compute type.
  library.def(
      "map(Tensor sr, Tensor hr, Tensor? step_tensor, float step, float alpha, float beta, float gamma, float mu, "
      "int window_size, float sigma, float c1, float c2, int padding, int kind) -> Tensor");
  // Returns residual * upstream * factor, formed in the residual's type and rounded once to dtype.
  library.def("scale(Tensor residual, Tensor upstream, float factor, ScalarType dtype) -> Tensor");
  // The same in the residual's own memory, for a graph that is not walked again.
  library.def("scale_(Tensor(a!) residual, Tensor upstream, float factor) -> ()");
  library.def("cpu_instruction_set() -> str");
}

namespace pspl {
namespace {

void run_jobs(int64_t jobs, void (*body)(void* context, int64_t job), void* context) {
  torch::stable::parallel_for(0, jobs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) body(context, job);
  });
}

struct CpuBackend {
  template <typename T>
  static void forward(const Params<T>& params, const Tensor&) {
    cpu::forward<T>(params, run_jobs);
  }

  template <typename T>
  static void scale(const ScaleParams<T>& params, const Tensor&) {
    cpu::scale<T>(params, run_jobs);
  }
};

std::string cpu_instruction_set() { return cpu::instruction_set(); }

}  // namespace
}  // namespace pspl

STABLE_TORCH_LIBRARY_IMPL(pspl_cuda, CPU, library) { PSPL_BIND_OPERATORS(library, ::pspl::CpuBackend); }

STABLE_TORCH_LIBRARY_IMPL(pspl_cuda, CompositeExplicitAutograd, library) {
  library.impl("cpu_instruction_set", TORCH_BOX(&::pspl::cpu_instruction_set));
}
