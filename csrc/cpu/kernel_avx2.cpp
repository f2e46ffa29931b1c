#if defined(__x86_64__)
#define PSPL_ISA avx2
#define PSPL_VECTOR_BYTES 32
#include "backward_kernel.h"
#include "forward_kernel.h"
#include "kernel_table.h"

namespace pspl::cpu::avx2 {
const KernelTable kernels = {&forward<float>, &forward<double>, &backward};
}
#endif
