// Whatever the compiler may assume of every processor: SSE2, NEON.
#define PSPL_ISA baseline
#define PSPL_VECTOR_BYTES 16
#include "kernel.h"
