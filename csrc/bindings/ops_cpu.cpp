// The operators on CPU tensors.
#include "../cpu/dispatch.h"
#include "operators.h"

namespace pspl {
namespace {

void run_jobs(int64_t jobs, void (*body)(void* context, int64_t job), void* context) {
  parallel_for(0, jobs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) body(context, job);
  });
}

struct CpuBackend {
  static void make_readable(Tensor&, Tensor&, ScalarType) {}

  template <typename T>
  static void forward(const ForwardParams<T>& params, const Tensor&) {
    cpu::forward<T>(params, run_jobs);
  }

  static void backward(const BackwardParams& params, const Tensor&) { cpu::backward(params, run_jobs); }
};

std::string cpu_instruction_set() { return cpu::instruction_set(); }

}  // namespace
}  // namespace pspl

PSPL_OPERATORS(CPU, library) { PSPL_BIND_OPERATORS(library, ::pspl::CpuBackend); }

PSPL_OPERATORS(CompositeExplicitAutograd, library) {
  library.impl("cpu_instruction_set", PSPL_OPERATOR(::pspl::cpu_instruction_set));
}
