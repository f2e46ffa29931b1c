#if defined(__x86_64__)
#define PSPL_ISA avx2
#define PSPL_VECTOR_BYTES 32
#include "kernel.h"
#endif
