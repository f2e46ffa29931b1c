// The machine of threads: one OS thread per CUDA thread of the whole grid, for ThreadSanitizer. It sees exactly the
// order that CUDA promises: __syncthreads and __syncwarp order memory within their block or warp, __threadfence with
// other fences. What this machine itself needs in order to work (shuffles, blocks taking turns) goes through relaxed
// atomics, which order nothing.
#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cuda_shim.h"

thread_local dim3 threadIdx, blockIdx, gridDim;

namespace pspl::cuda {
alignas(4096) unsigned char shared_memory[emulation::kMaxSharedBytes];
}

namespace emulation {
namespace {

constexpr unsigned kMostThreads = 4000;  // ThreadSanitizer takes 8000 or so
constexpr size_t kStackBytes = 1024 * 1024;
constexpr int kPatienceSeconds = 60;

using Word = std::atomic<unsigned>;

// Until word is no longer value. A raw system call: ThreadSanitizer takes no notice.
void wait_while(const Word& word, unsigned value) {
  timespec patience{kPatienceSeconds, 0};
  while (word.load(std::memory_order_relaxed) == value) {
    if (syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, &patience, nullptr, 0) != 0 && errno == ETIMEDOUT) {
      std::fputs("emulation: a thread waits for others that never come: a barrier that not all reach\n", stderr);
      _exit(3);
    }
  }
}

void set_and_wake(Word& word, unsigned value, std::memory_order order) {
  word.store(value, order);
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
}

class Barrier {
 public:
  explicit Barrier(unsigned size) : size_(size) {}

  // Orders memory between the threads only if told to.
  void wait(bool orders) {
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    const auto arriving = orders ? std::memory_order_acq_rel : std::memory_order_relaxed;
    if (arrived_.fetch_add(1, arriving) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      set_and_wake(phase_, phase + 1, orders ? std::memory_order_release : std::memory_order_relaxed);
    } else {
      wait_while(phase_, phase);
      if (orders) phase_.load(std::memory_order_acquire);
    }
  }

 private:
  unsigned size_;
  Word arrived_{0};
  Word phase_{0};
};

struct Warp {
  Barrier barrier{kWarpSize};
  Barrier exchange{kWarpSize};
  std::atomic<uint64_t> given[kWarpSize];
};

struct Block {
  Block(unsigned threads) : barrier(threads), start(threads), warps(threads / kWarpSize), running(threads) {}
  Barrier barrier;
  Barrier start;
  std::vector<Warp> warps;
  Word running;
};

thread_local Block* block;
thread_local bool has_read_atomic;
Word turn;
Word fences;

// Other pages under the same address: without them, ThreadSanitizer would hold the blocks' use of it against one
// another.
void renew_shared_memory() {
  void* const memory = pspl::cuda::shared_memory;
  if (mmap(memory, kMaxSharedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != memory) {
    std::perror("mmap");
    _exit(3);
  }
  std::memset(memory, kPoison, kMaxSharedBytes);
}

}  // namespace

void run(unsigned blocks, unsigned threads, size_t, const std::function<void()>& body) {
  if (blocks * threads > kMostThreads) throw std::invalid_argument("too many threads to run all of them at once");
  std::vector<unsigned> turns(blocks);
  std::iota(turns.begin(), turns.end(), 0u);
  if (order.seed == 1) std::reverse(turns.begin(), turns.end());
  if (order.seed > 1) std::shuffle(turns.begin(), turns.end(), std::mt19937(order.seed));

  std::vector<std::unique_ptr<Block>> all;
  for (unsigned i = 0; i < blocks; ++i) all.push_back(std::make_unique<Block>(threads));
  turn.store(0, std::memory_order_relaxed);
  // ThreadSanitizer keeps shadow for every byte of a stack.
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  pthread_setattr_default_np(&attributes);
  std::vector<std::thread> running;
  for (unsigned i = 0; i < blocks; ++i) {
    for (unsigned thread = 0; thread < threads; ++thread) {
      running.emplace_back([&, i, thread] {
        block = all[i].get();
        gridDim.x = blocks;
        blockIdx.x = turns[i];
        threadIdx.x = thread;
        if (thread == 0) {
          for (unsigned now; (now = turn.load(std::memory_order_relaxed)) != i;) wait_while(turn, now);
          renew_shared_memory();
        }
        block->start.wait(true);
        body();
        if (block->running.fetch_sub(1, std::memory_order_relaxed) == 1) {
          set_and_wake(turn, i + 1, std::memory_order_relaxed);
        }
      });
    }
  }
  for (std::thread& thread : running) thread.join();
}

void block_barrier() { block->barrier.wait(true); }

void warp_barrier() { block->warps[threadIdx.x / kWarpSize].barrier.wait(true); }

uint64_t exchange(uint64_t value, unsigned other_lane) {
  Warp& warp = block->warps[threadIdx.x / kWarpSize];
  warp.given[threadIdx.x % kWarpSize].store(value, std::memory_order_relaxed);
  warp.exchange.wait(false);
  const uint64_t taken = warp.given[other_lane].load(std::memory_order_relaxed);
  warp.exchange.wait(false);  // nobody gives the next value before all have taken this one
  return taken;
}

void atomic_was_read() { has_read_atomic = true; }

// A fence releases what this thread has written. It acquires what others have released only if this thread has read an
// atomic before, by which it can know of them.
void fence() {
  if (has_read_atomic) fences.load(std::memory_order_acquire);
  fences.fetch_add(0, std::memory_order_release);
}

}  // namespace emulation
