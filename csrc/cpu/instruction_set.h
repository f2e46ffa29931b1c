// The instruction set that a kernel_*.cpp file is compiled for: its name and the size of its vectors. The defaults let
// a tool parse each header alone.
//
// All kernel code is in namespace PSPL_ISA and, inside it, in an anonymous namespace: files compiled with different -m
// flags must not share a function, or the linker would keep one copy for all of them.
#pragma once

#ifndef PSPL_ISA
#define PSPL_ISA baseline
#define PSPL_VECTOR_BYTES 16
#endif

#define PSPL_INLINE inline __attribute__((always_inline))
