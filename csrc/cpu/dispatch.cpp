#include "dispatch.h"

#include <cstdlib>
#include <cstring>

#include "../pspl_params.h"
#include "kernel_table.h"

namespace pspl::cpu {
namespace {

struct InstructionSet {
  const char* name;
  const KernelTable* kernels;
  bool supported;
};

// An unknown name in PSPL_CPU_ISA has no effect.
InstructionSet choose() {
  const InstructionSet sets[] = {
#if defined(__x86_64__)
      {"avx512", &avx512::kernels,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")},
      {"avx2", &avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {"baseline", &baseline::kernels, true},
  };
  const int count = sizeof(sets) / sizeof(sets[0]);
  int best = 0;
  if (const char* wanted = std::getenv("PSPL_CPU_ISA")) {
    while (best < count && std::strcmp(sets[best].name, wanted) != 0) ++best;
    if (best == count) best = 0;
  }
  while (!sets[best].supported) ++best;
  return sets[best];
}

const InstructionSet& chosen() {
  static const InstructionSet set = choose();
  return set;
}

}  // namespace

const char* instruction_set() { return chosen().name; }

template <>
void forward(const ForwardParams<float>& params, ParallelFor parallel_for) {
  chosen().kernels->forward_float(params, parallel_for);
}

template <>
void forward(const ForwardParams<double>& params, ParallelFor parallel_for) {
  chosen().kernels->forward_double(params, parallel_for);
}

void backward(const BackwardParams& params, ParallelFor parallel_for) {
  chosen().kernels->backward(params, parallel_for);
}

}  // namespace pspl::cpu
