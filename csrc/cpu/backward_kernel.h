// The backward pass: gradient = sign * grad_output * saved_gradient. In place, a product of 1 needs no work.
#pragma once

#include <cstdint>

#include "../pspl_math.h"
#include "../pspl_params.h"
#include "dispatch.h"
#include "elements.h"
#include "float_environment.h"
#include "instruction_set.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

constexpr int64_t kBackwardChunk = 1 << 16;  // elements of one job

struct BackwardJobs {
  const BackwardParams& params;
  const float factor;
};

// S is the saved element type, E the gradient's.
template <typename S, typename E>
void scale(const BackwardJobs& jobs, int64_t begin, int64_t count) {
  const S* const from = static_cast<const S*>(jobs.params.saved_gradient) + begin;
  E* const to = static_cast<E*>(jobs.params.gradient) + begin;
  const float factor = jobs.factor;
  // The memory is the same or disjoint, so no element depends on another.
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#else
#pragma GCC ivdep
#endif
  for (int64_t i = 0; i < count; ++i) to[i] = narrow<E>(widen(from[i]) * factor);
}

void backward_job(void* context, int64_t job) {
  const DefaultFloatEnvironment environment;
  const auto& jobs = *static_cast<const BackwardJobs*>(context);
  const BackwardParams& p = jobs.params;
  const int64_t begin = job * kBackwardChunk;
  const int64_t count = p.numel - begin < kBackwardChunk ? p.numel - begin : kBackwardChunk;
  if (p.saved_dtype == DType::kBFloat16) return scale<BFloat16, BFloat16>(jobs, begin, count);
  if (p.dtype == DType::kBFloat16) return scale<float, BFloat16>(jobs, begin, count);
  if (p.dtype == DType::kFloat16) return scale<float, Half>(jobs, begin, count);
  scale<float, float>(jobs, begin, count);
}

void backward(const BackwardParams& params, ParallelFor parallel_for) {
  const DefaultFloatEnvironment environment;
  BackwardJobs jobs{params, *params.grad_output * params.sign};
  if (params.gradient == params.saved_gradient && jobs.factor == 1.0f) return;
  parallel_for(ceil_div(params.numel, kBackwardChunk), &backward_job, &jobs);
}

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
