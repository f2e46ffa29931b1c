// The backward pass: gradient = sign * grad_output * saved_gradient. In place, a product of 1 needs no work.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../pspl_params.h"
#include "dispatch.h"
#include "elements.h"
#include "instruction_set.h"
#include "tiling.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

constexpr int64_t kBackwardChunk = 1 << 16;  // elements of one job

struct BackwardJobs {
  const BackwardParams& params;
  const float factor;
};

template <typename S, typename E>
PSPL_INLINE void scale(const S* from, float factor, E* to, int64_t count) {
  // The memory is the same or disjoint, so no element depends on another.
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#else
#pragma GCC ivdep
#endif
  for (int64_t i = 0; i < count; ++i) to[i] = Narrow<E>::from(widen(from[i]) * factor);
}

void backward_job(void* context, int64_t job) {
  const auto& jobs = *static_cast<const BackwardJobs*>(context);
  const BackwardParams& p = jobs.params;
  const int64_t begin = job * kBackwardChunk;
  const int64_t count = p.numel - begin < kBackwardChunk ? p.numel - begin : kBackwardChunk;
  const auto run = [&](auto* to) {
    using E = std::remove_pointer_t<decltype(to)>;
    to = static_cast<E*>(p.gradient) + begin;
    if (p.saved_dtype == p.dtype) {
      scale(static_cast<const E*>(p.saved_gradient) + begin, jobs.factor, to, count);
    } else {
      scale(static_cast<const float*>(p.saved_gradient) + begin, jobs.factor, to, count);
    }
  };
  if (p.dtype == DType::kFloat16) return run(static_cast<Half*>(nullptr));
  if (p.dtype == DType::kBFloat16) return run(static_cast<BFloat16*>(nullptr));
  run(static_cast<float*>(nullptr));
}

void backward(const BackwardParams& params, ParallelFor parallel_for) {
  BackwardJobs jobs{params, *params.grad_output * params.sign};
  if (params.gradient == params.saved_gradient && jobs.factor == 1.0f) return;
  parallel_for(divide_up(params.numel, kBackwardChunk), &backward_job, &jobs);
}

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
