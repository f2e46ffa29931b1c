// The backward pass: gradient = factor * grad_output * saved_gradient. In place, a product of 1 needs no work.
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

template <typename T>
struct BackwardJobs {
  const BackwardParams<T>& params;
  const T factor;
};

template <typename S, typename T, typename E>
PSPL_INLINE void scale(const S* from, T factor, E* to, int64_t count) {
  // The memory is the same or disjoint, so no element depends on another.
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#else
#pragma GCC ivdep
#endif
  for (int64_t i = 0; i < count; ++i) to[i] = Narrow<E>::from(T(widen(from[i])) * factor);
}

template <typename T>
void backward_job(void* context, int64_t job) {
  const auto& jobs = *static_cast<const BackwardJobs<T>*>(context);
  const BackwardParams<T>& p = jobs.params;
  const T factor = jobs.factor;
  const int64_t begin = job * kBackwardChunk;
  const int64_t count = p.numel - begin < kBackwardChunk ? p.numel - begin : kBackwardChunk;
  with_element(p.dtype, [&](auto* type) {
    using E = std::remove_pointer_t<decltype(type)>;
    E* const to = static_cast<E*>(p.gradient) + begin;
    if (p.saved_dtype == p.dtype) {
      scale(static_cast<const E*>(p.saved_gradient) + begin, factor, to, count);
    } else {
      scale(static_cast<const T*>(p.saved_gradient) + begin, factor, to, count);
    }
  });
}

template <typename T>
void backward(const BackwardParams<T>& params, ParallelFor parallel_for) {
  BackwardJobs<T> jobs{params, *params.grad_output * params.factor};
  if (params.gradient == params.saved_gradient && jobs.factor == T(1)) return;
  parallel_for(divide_up(params.numel, kBackwardChunk), &backward_job<T>, &jobs);
}

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
