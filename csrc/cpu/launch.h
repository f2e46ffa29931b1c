// What ops_cpu.cpp may call: the CPU kernels behind plain structs.
#pragma once

#include "../pspl_params.h"

namespace pspl::cpu {

// Runs body(context, job) once for each job in [0, jobs), in any order, on any threads.
using ParallelFor = void (*)(int64_t jobs, void (*body)(void* context, int64_t job), void* context);

// Fills every output that params names (residual, map, loss, stats). The result does not depend on how parallel_for
// spreads the jobs. T is float or double.
template <typename T>
void forward(const Params<T>& params, ParallelFor parallel_for);

template <typename T>
void scale(const ScaleParams<T>& params, ParallelFor parallel_for);

// "avx512", "avx2" or "baseline": chosen once, from the processor and from PSPL_CPU_ISA (which can only ask for less
// than the processor has).
const char* instruction_set();

}  // namespace pspl::cpu
