// The kernels of one instruction set, as its file (kernel_*.cpp) offers them and launch.cpp picks them.
#pragma once

#include "launch.h"

namespace pspl::cpu {

struct Kernels {
  void (*forward_float)(const Params<float>&, ParallelFor);
  void (*forward_double)(const Params<double>&, ParallelFor);
  void (*scale_float)(const ScaleParams<float>&, ParallelFor);
  void (*scale_double)(const ScaleParams<double>&, ParallelFor);
};

namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

}  // namespace pspl::cpu
