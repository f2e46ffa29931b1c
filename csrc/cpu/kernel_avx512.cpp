#if defined(__x86_64__)
#define PSPL_ISA avx512
#define PSPL_VECTOR_BYTES 64
#include "backward_kernel.h"
#include "forward_kernel.h"
#include "kernel_table.h"

namespace pspl::cpu::avx512 {
const KernelTable kernels = {&forward<float>, &forward<double>, &backward};
}
#endif
