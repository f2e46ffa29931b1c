#if defined(__x86_64__)
#define PSPL_ISA avx512
#define PSPL_VECTOR_BYTES 64
#include "kernel.h"
#endif
