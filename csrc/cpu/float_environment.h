#pragma once

#include <cfenv>

#include "instruction_set.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

// While it lives, the thread computes as IEEE 754 says by default: rounding to nearest, and with subnormal numbers. The
// thread's own settings are restored at the end. torch.set_flush_denormal changes those of one thread only, and a
// library built with -ffast-math those of threads that begin after it was loaded: the result would depend on which
// thread ran which job.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() {
    std::fegetenv(&callers);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatEnvironment() { std::fesetenv(&callers); }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
  std::fenv_t callers;
};

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
