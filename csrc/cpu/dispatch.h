// The interface of the CPU kernels: bindings/ops_cpu.cpp calls nothing else.
#pragma once

#include <cstdint>

#include "../pspl_params.h"

namespace pspl::cpu {

// Runs body(context, job) once for each job in [0, jobs), in any order, on any threads.
using ParallelFor = void (*)(int64_t jobs, void (*body)(void* context, int64_t job), void* context);

// Fills every output that params names (gradient, map, loss, stats). The result does not depend on how parallel_for
// distributes the jobs. T is float or double.
template <typename T>
void forward(const ForwardParams<T>& params, ParallelFor parallel_for);

void backward(const BackwardParams& params, ParallelFor parallel_for);

// "avx512", "avx2" or "baseline". Chosen once per process: the best set that the processor supports, or a smaller one
// that the environment variable PSPL_CPU_ISA names.
const char* instruction_set();

}  // namespace pspl::cpu
