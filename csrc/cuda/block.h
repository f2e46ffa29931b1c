// The threads of a block, the same in every kernel.
#pragma once

#include <cstdint>

namespace pspl::cuda {

constexpr int kLanes = 32;
constexpr int kWarps = 4;
constexpr int kThreads = kLanes * kWarps;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace pspl::cuda
