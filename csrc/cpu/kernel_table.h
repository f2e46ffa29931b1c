// The kernels of one instruction set. Each kernel_*.cpp defines its table; dispatch.cpp chooses one.
#pragma once

#include "../pspl_params.h"
#include "dispatch.h"

namespace pspl::cpu {

struct KernelTable {
  void (*forward_float)(const ForwardParams<float>&, ParallelFor);
  void (*forward_double)(const ForwardParams<double>&, ParallelFor);
  void (*backward)(const BackwardParams&, ParallelFor);
};

namespace baseline {
extern const KernelTable kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable kernels;
}
namespace avx512 {
extern const KernelTable kernels;
}
#endif

}  // namespace pspl::cpu
