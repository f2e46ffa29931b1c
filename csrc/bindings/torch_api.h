// Everything that the bindings use of torch, from one of two headers with the same names; setup.py chooses by torch's
// version.
#pragma once

#ifdef TORCH_TARGET_VERSION
#include "torch_stable.h"
#else
#include "torch_aten.h"
#endif
