#pragma once

#include <cstdint>
#include <new>

#include "instruction_set.h"

namespace pspl::cpu::PSPL_ISA {
namespace {

// Uninitialised memory that starts on a cache line. std::vector is not used because the linker would keep one copy of
// its code for all instruction sets.
template <typename E>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t count) : data(static_cast<E*>(::operator new(count * sizeof(E), kAlignment))) {}
  ~AlignedBuffer() { ::operator delete(static_cast<void*>(data), kAlignment); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  E* get() const { return data; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  E* data;
};

}  // namespace
}  // namespace pspl::cpu::PSPL_ISA
