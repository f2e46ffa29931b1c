// The machine of fibers: a CUDA thread runs until it has to wait for others, then the next one does.
#include <sys/mman.h>

#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda_shim.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, gridDim;

namespace pspl::cuda {
alignas(128) unsigned char shared_memory[emulation::kMaxSharedBytes];
}

// ---------------------------------------------------------------- stacks

#if defined(__x86_64__)

// void switch_stack(void** from, void* to): keeps the registers that a call must preserve on the stack, and the stack
// in *from. swapcontext() would make two system calls of it.
asm(R"(
.text
.type switch_stack, @function
switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size switch_stack, .-switch_stack
)");
extern "C" void switch_stack(void** from, void* to) asm("switch_stack");

namespace {
using Context = void*;
void switch_context(Context& from, Context& to) { switch_stack(&from, to); }
void make_context(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  // What switch_stack() pops: six registers and an address to return to. Below it the stack must look as after a call.
  void** top = reinterpret_cast<void**>(stack + bytes) - 1;
  *top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}
}  // namespace

#else

#include <ucontext.h>

namespace {
using Context = ucontext_t;
void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
void make_context(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
}  // namespace

#endif

namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;  // only what is touched costs memory
constexpr size_t kGuardBytes = 4096;

enum class State { kReady, kAtWarpBarrier, kInExchange, kAtBlockBarrier, kDone };

struct Fiber {
  Context context;
  unsigned char* stack;
  State state;
  unsigned next;  // who runs when this one waits: a ring through the warp
  uint64_t given;
  void* asan_stack;
};

// Threads of a barrier's group that have reached it.
struct Group {
  unsigned waiting[5];  // per State
};

std::vector<Fiber> fibers;
std::vector<Group> warps;
Group block;
std::vector<unsigned> turns;  // the order of the threads
unsigned current;
Context host;
void* asan_host_stack;
const void* host_stack;
size_t host_stack_bytes;
const std::function<void()>* kernel;

// AddressSanitizer wants to know which stack is in use.
void leaving([[maybe_unused]] void** keep, [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(keep, bottom, bytes);
#endif
}
void arrived([[maybe_unused]] void* kept, [[maybe_unused]] bool from_host) {
#if defined(__SANITIZE_ADDRESS__)
  if (from_host) {
    __sanitizer_finish_switch_fiber(kept, &host_stack, &host_stack_bytes);
  } else {
    __sanitizer_finish_switch_fiber(kept, nullptr, nullptr);
  }
#endif
}

// The next thread that can run: in the same warp if there is one. threads.size() if all wait or have ended.
unsigned next_ready() {
  unsigned i = fibers[current].next;
  for (unsigned lane = 0; lane < kWarpSize; ++lane, i = fibers[i].next) {
    if (fibers[i].state == State::kReady) return i;
  }
  for (const unsigned thread : turns) {
    if (fibers[thread].state == State::kReady) return thread;
  }
  return static_cast<unsigned>(turns.size());
}

// Runs someone else until this thread is ready, or for good if it is done.
void yield() {
  Fiber& from = fibers[current];
  const unsigned next = next_ready();
  if (next == current) return;
  void** const keep = from.state == State::kDone ? nullptr : &from.asan_stack;
  if (next == turns.size()) {
    leaving(keep, host_stack, host_stack_bytes);
    switch_context(from.context, host);
  } else {
    Fiber& to = fibers[next];
    current = next;
    threadIdx.x = next;
    leaving(keep, to.stack, kStackBytes);
    switch_context(from.context, to.context);
  }
  arrived(from.asan_stack, false);
}

void wait(Group& group, unsigned begin, unsigned end, State state) {
  fibers[current].state = state;
  unsigned& waiting = group.waiting[static_cast<int>(state)];
  if (++waiting == end - begin) {
    waiting = 0;
    for (unsigned i = begin; i < end; ++i) fibers[i].state = State::kReady;
  }
  yield();
}

void wait_for_warp(State state) {
  const unsigned warp = current / kWarpSize;
  wait(warps[warp], warp * kWarpSize, (warp + 1) * kWarpSize, state);
}

// A new fiber begins here, switched to by the host or by another fiber.
bool started_by_host;
void enter() {
  arrived(nullptr, std::exchange(started_by_host, false));
  (*kernel)();
  fibers[current].state = State::kDone;
  yield();
  __builtin_unreachable();
}

void make_fibers(unsigned threads) {
  while (fibers.size() < threads) {
    auto* const memory = static_cast<unsigned char*>(
        mmap(nullptr, kGuardBytes + kStackBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED || mprotect(memory + kGuardBytes, kStackBytes, PROT_READ | PROT_WRITE) != 0) {
      throw std::bad_alloc();
    }
    fibers.emplace_back().stack = memory + kGuardBytes;
  }
  warps.resize((threads + kWarpSize - 1) / kWarpSize);
}

std::vector<unsigned> ordered(unsigned count) {
  std::vector<unsigned> result(count);
  std::iota(result.begin(), result.end(), 0u);
  if (order.seed == 1) std::reverse(result.begin(), result.end());
  if (order.seed > 1) std::shuffle(result.begin(), result.end(), std::mt19937(order.seed));
  return result;
}

// Warps in some order, and in each warp its lanes in some order.
void set_turns(unsigned threads) {
  turns.clear();
  const std::vector<unsigned> lanes = ordered(kWarpSize);
  for (const unsigned warp : ordered(threads / kWarpSize)) {
    for (unsigned i = 0; i < kWarpSize; ++i) {
      const unsigned thread = warp * kWarpSize + lanes[i];
      fibers[thread].next = warp * kWarpSize + lanes[(i + 1) % kWarpSize];
      turns.push_back(thread);
    }
  }
}

void poison_shared_memory([[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(pspl::cuda::shared_memory, sizeof(pspl::cuda::shared_memory));
#endif
  std::memset(pspl::cuda::shared_memory, kPoison, sizeof(pspl::cuda::shared_memory));
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(pspl::cuda::shared_memory + bytes, sizeof(pspl::cuda::shared_memory) - bytes);
#endif
}

}  // namespace

void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& body) {
  make_fibers(threads);
  set_turns(threads);
  kernel = &body;
  gridDim.x = blocks;
  for (const unsigned index : ordered(blocks)) {
    blockIdx.x = index;
    poison_shared_memory(shared_bytes);
    block = {};
    warps.assign(warps.size(), {});
    for (unsigned i = 0; i < threads; ++i) {
      fibers[i].state = State::kReady;
#if defined(__SANITIZE_ADDRESS__)
      ASAN_UNPOISON_MEMORY_REGION(fibers[i].stack, kStackBytes);  // the fiber before left without returning
#endif
      make_context(fibers[i].context, fibers[i].stack, kStackBytes, enter);
    }
    current = turns.front();
    threadIdx.x = current;
    started_by_host = true;
    leaving(&asan_host_stack, fibers[current].stack, kStackBytes);
    switch_context(host, fibers[current].context);
    arrived(asan_host_stack, false);
    for (unsigned i = 0; i < threads; ++i) {
      if (fibers[i].state == State::kDone) continue;
      throw std::runtime_error(
          "emulation: threads of a block wait for others that never come: a barrier that not all reach");
    }
  }
}

void block_barrier() { wait(block, 0, static_cast<unsigned>(turns.size()), State::kAtBlockBarrier); }

void warp_barrier() { wait_for_warp(State::kAtWarpBarrier); }

uint64_t exchange(uint64_t value, unsigned other_lane) {
  fibers[current].given = value;
  wait_for_warp(State::kInExchange);
  const uint64_t taken = fibers[current / kWarpSize * kWarpSize + other_lane].given;
  wait_for_warp(State::kInExchange);  // nobody gives the next value before all have taken this one
  return taken;
}

void atomic_was_read() {}

void fence() {}

}  // namespace emulation
