// The most float32 multiply-adds per second that this processor does on the given number of threads together: the roof
// that a kernel's 88 per element are held against. Prints that number in units of 10^9.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

// An FMA takes 4 or 5 cycles and two can start per cycle: 10 chains would do, 12 leave some slack and still fit into 16
// registers with the two constants.
constexpr int kChains = 12;
constexpr long kSteps = 3'000'000;
constexpr int kTrials = 8;

// x = 0.999 x + 0.001 tends to 1: no overflow, no subnormal numbers.
float chains(long steps) {
  Vector x[kChains];
  for (int k = 0; k < kChains; ++k) x[k] = Vector{} + static_cast<float>(k);
  const Vector factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
  for (long i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) x[k] = x[k] * factor + term;
  }
  Vector sum{};
  for (const Vector& each : x) sum += each;
  return sum[0];
}

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  double best = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::barrier start(threads);
    std::vector<double> seconds(threads);
    std::vector<float> results(threads);  // used, so that nothing is optimised away
    std::vector<std::thread> workers;
    for (int t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        start.arrive_and_wait();
        const auto begin = std::chrono::steady_clock::now();
        results[t] = chains(kSteps);
        seconds[t] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      });
    }
    for (auto& worker : workers) worker.join();
    if (std::count(results.begin(), results.end(), 0.0f) != 0) return 1;
    const double slowest = *std::max_element(seconds.begin(), seconds.end());
    best = std::max(best, threads * static_cast<double>(kSteps) * kChains * (kBytes / sizeof(float)) / slowest / 1e9);
  }
  std::printf("%.3f\n", best);
}
