// Runs the kernels of csrc/cpu over many cases without torch, for the sanitizers and for other compilers and
// processors. Two dumps of the outputs can be compared.
//
//   driver          run the cases; print the instruction set and how many there were
//   driver FILE     also write all outputs to FILE, as doubles
#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

#include "../helpers/driver_common.h"
#include "cpu/dispatch.h"
#include "pspl_math.h"

using namespace pspl;
using namespace pspl::driver;

namespace {

std::FILE* dump = nullptr;

// The jobs in another order at every launch: none may wait for another, and the result may not depend on it.
void run_jobs(int64_t jobs, void (*body)(void* context, int64_t job), void* context) {
  std::vector<int64_t> order(jobs);
  for (int64_t i = 0; i < jobs; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937(unsigned(jobs)));
  for (const int64_t job : order) body(context, job);
}

// In 16 bits, two instruction sets may round to neighbours that are far apart.
void dump_numbers(const void* data, DType dtype, int64_t i) {
  if (dump == nullptr || size_of(dtype) == 2) return;
  const double value = number_or_nan(data, dtype, i);
  if (std::fwrite(&value, sizeof(value), 1, dump) != 1) fail("the dump can't be written");
}

void check(const Result& result) {
  result.check();
  for_each_offset(result.c, result.strides,
                  [&](int64_t offset) { dump_numbers(result.memory.data, result.dtype, offset); });
}

template <typename T>
void check_numbers(const T* data, int count, const char* name) {
  expect_numbers(data, kComputeType<T>, count, name);
  for (int i = 0; i < count; ++i) dump_numbers(data, kComputeType<T>, i);
}

template <typename T>
void run(const Case& c) {
  const Image sr(c, c.sr, c.sr_layout), hr(c, c.hr, c.hr_layout);
  ForwardParams<T> p = parameters<T>(c, sr, hr);

  const Memory loss(sizeof(T)), stats(kNumStats * sizeof(T));
  const bool bfloat16 = c.sr == DType::kBFloat16 && sizeof(T) == sizeof(float) && !c.everything;
  const Result gradient(c, bfloat16 ? DType::kBFloat16 : kComputeType<T>, "gradient");
  p.gradient = {gradient.memory.data, gradient.dtype, gradient.strides};
  p.loss = static_cast<T*>(loss.data);
  if (c.everything) p.stats = static_cast<T*>(stats.data);
  cpu::forward<T>(p, run_jobs);
  check(gradient);
  check_numbers(p.loss, 1, "loss");
  if (!c.everything) return;
  check_numbers(p.stats, kNumStats, "stats");
  for_each_map(p, c, [&](const Result& map) {
    cpu::forward<T>(p, run_jobs);
    check(map);
  });
}

// The backward pass, also from an element that no vector is aligned to. saved is the saved gradient's dtype.
void run_backward(int64_t count, DType saved, DType dtype) {
  for (int64_t offset = 0; offset < 2; ++offset) {
    const Memory saved_gradient((count + offset) * size_of(saved)), grad_output(sizeof(float)),
        gradient(count * size_of(dtype));
    for (int64_t i = 0; i < count + offset; ++i) put_pixel(saved_gradient.data, saved, i);
    *static_cast<float*>(grad_output.data) = 0.5f;
    const char* const from = static_cast<const char*>(saved_gradient.data) + offset * size_of(saved);
    cpu::backward({from, saved, static_cast<float*>(grad_output.data), 1.0f, gradient.data, dtype, count}, run_jobs);
    expect_numbers(gradient.data, dtype, count, "gradient");
  }
}

const DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16};
const Padding kPaddings[] = {Padding::kZeros, Padding::kReflect, Padding::kReplicate};

std::vector<Case> all_cases() {
  // Around vectors, strips and bands of every instruction set and compute type; smaller than the window.
  const int64_t sizes[][5] = {{1, 1, 1, 1, 1},    {1, 1, 1, 2, 300}, {1, 1, 1, 11, 11}, {1, 2, 3, 17, 6},
                              {1, 1, 1, 300, 1},  {1, 1, 1, 7, 95},  {1, 1, 2, 5, 96},  {1, 1, 1, 6, 97},
                              {1, 1, 1, 12, 193}, {1, 1, 1, 65, 5},  {1, 1, 1, 129, 3}, {2, 2, 1, 3, 49}};
  std::vector<Case> cases;
  const auto add = [&](Case c) {
    for (const auto& size : sizes) {
      std::copy_n(size, 5, c.size);
      cases.push_back(c);
    }
  };
  const auto with = [](auto change) {
    Case c{};
    change(c);
    return c;
  };
  for (const Padding padding : kPaddings) {
    for (const Kind layout : {Kind::kContiguous, Kind::kChannelsLast, Kind::kTransposed, Kind::kEveryOther}) {
      add(with([&](Case& c) {
        c.padding = padding;
        c.sr_layout = c.hr_layout = c.out_layout = layout;
        c.everything = true;
      }));
    }
    for (const int radius : {0, 1, 2, 3, 4, 6, 15, kMaxRadius}) {
      // The largest windows are slow on more than the smallest images, and show nothing new there.
      if (radius == kMaxRadius) {
        Case c{{1, 1, 1, 3, 4}, radius, padding};
        c.sigma = radius / 3.0;
        cases.push_back(c);
        continue;
      }
      add(with([&](Case& c) {
        c.radius = radius;
        c.sigma = radius / 3.0 + 0.5;
        c.padding = padding;
        c.distance = Distance::kL2;
        c.everything = radius % 2 == 0;
      }));
    }
  }
  // Too narrow for two output rows to share a pivot.
  add(with([](Case& c) {
    c.sigma = 0.25;
    c.everything = true;
  }));
  int which = 0;
  for (const DType sr : kDTypes) {
    for (const DType hr : kDTypes) {
      add(with([&](Case& c) {
        c.padding = kPaddings[which++ % 3];
        c.sr = sr;
        c.hr = hr;
        c.sr_layout = which % 2 == 0 ? Kind::kEveryOther : Kind::kContiguous;
        c.everything = which % 4 == 0;
      }));
    }
  }
  for (const Kind layout : {Kind::kExpandedBatch, Kind::kExpandedRows, Kind::kExpandedAll}) {
    add(with([&](Case& c) {
      c.padding = kPaddings[which++ % 3];
      c.hr_layout = layout;
      c.sr_layout = c.out_layout = Kind::kChannelsLast;
      c.distance = Distance::kCharbonnier;
    }));
  }
  return cases;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 2 && (dump = std::fopen(arguments[1], "wb")) == nullptr) fail("the dump can't be opened");
  const std::vector<Case> cases = all_cases();
  for (const Case& c : cases) {
    if (c.sr == DType::kFloat64 || c.hr == DType::kFloat64)
      run<double>(c);
    else
      run<float>(c);
  }
  // Around the vectors and the chunks that the backward pass is cut into.
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const int64_t n : {1, 7, 65, (1 << 16) - 1, (1 << 16) + 1}) {
      run_backward(n, DType::kFloat32, dtype);
      if (dtype == DType::kBFloat16) run_backward(n, dtype, dtype);
    }
  }
  if (dump != nullptr && std::fclose(dump) != 0) fail("the dump can't be written");
  std::printf("%s %zu cases\n", cpu::instruction_set(), cases.size());
}
