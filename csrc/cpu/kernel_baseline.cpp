// The instructions that every processor of an architecture has: SSE2, NEON.
#define PSPL_ISA baseline
#define PSPL_VECTOR_BYTES 16
#include "backward_kernel.h"
#include "forward_kernel.h"
#include "kernel_table.h"

namespace pspl::cpu::baseline {
const KernelTable kernels = {&forward<float>, &forward<double>, &backward};
}
