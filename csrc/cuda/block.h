// The threads of a block, the same in every kernel.
#pragma once

namespace pspl::cuda {

constexpr int kLanes = 32;
constexpr int kWarps = 4;
constexpr int kThreads = kLanes * kWarps;

}  // namespace pspl::cuda
