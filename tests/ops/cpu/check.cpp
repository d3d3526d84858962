// Every format by every variant this processor runs, in memory that is as large as it must be and no larger: what a sanitizer watches, and what another
// processor's emulator runs. The reference is a sum in double of the numbers that `unpack` gives, which the tests in Python hold to the files' meaning.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "pool.h"
#include "variant.h"

using namespace pellucid;

int check_lanes();  // check_lanes.cpp: how many facts failed
int check_stored();  // check_stored.cpp
int check_head();  // check_head.cpp
int check_learn();  // check_learn.cpp

namespace {

int n_failed = 0;

void expect(bool fact, const char* what, const char* format = "", const char* variant = "") {
  if (fact) return;
  ++n_failed;
  std::printf("failed: %s %s %s\n", what, format, variant);
}

// Random bytes whose scales are modest: no half float of theirs has its upper exponent bit.
std::vector<uint8_t> file_rows(const Layout& layout, int64_t n_rows, int64_t n_columns, std::mt19937& noise) {
  std::vector<uint8_t> out(n_rows * (n_columns / layout.block) * layout.source_bytes);
  for (uint8_t& b : out) b = static_cast<uint8_t>(noise()) & (layout.scale == Scale::exponent ? 0x7f : 0xbf);
  return out;
}

void check_product(int format, int64_t n_rows, int64_t n_columns, int64_t n, std::mt19937& noise) {
  const Layout& layout = kLayouts[format];
  const std::vector<uint8_t> from = file_rows(layout, n_rows, n_columns, noise);
  std::unique_ptr<uint8_t[]> data(new uint8_t[packed_bytes(layout, n_rows, n_columns)]);
  repack(format, from.data(), n_rows, n_columns, data.get());
  const Packed w{data.get(), format, n_rows, n_columns};
  std::vector<int64_t> rows(n_rows);
  for (int64_t i = 0; i < n_rows; ++i) rows[i] = i;
  std::vector<float> numbers(n_rows * n_columns), x(n * n_columns), bias(n_rows);
  unpack(w, rows.data(), n_rows, numbers.data());
  std::normal_distribution<float> normal;
  for (float& number : x) number = normal(noise);
  for (float& number : bias) number = normal(noise);
  std::vector<uint8_t> first;
  for (const Variant* variant : variants()) {
    std::vector<uint8_t> quantized(quantized_bytes(n, n_columns));
    quantize(*variant, x.data(), n, n_columns, quantized.data());
    if (first.empty()) first = quantized;
    expect(quantized == first, "activations are the same bytes with every variant", layout.name, variant->name);
    std::vector<float> out(n * n_rows);
    multiply(*variant, w, quantized.data(), n, bias.data(), out.data(), n_rows);
    double worst = 0, size = 1e-30;
    for (int64_t m = 0; m < n; ++m) {
      const int64_t group = m / kRows, in_group = std::min<int64_t>(kRows, n - group * kRows);
      const uint8_t* part = quantized.data() + quantized_bytes(kRows, n_columns) * group;
      for (int64_t f = 0; f < n_rows; ++f) {
        double sum = bias[f], sizes = 0;
        for (int64_t k = 0; k < n_columns; ++k) {
          const uint8_t* block = part + k / kColumns * in_group * kRowBytes;
          float scale;
          std::memcpy(&scale, block + in_group * kColumns + 4 * (m % kRows), 4);
          const double product = double(scale) * static_cast<int8_t>(block[(m % kRows) * kColumns + k % kColumns]) * numbers[f * n_columns + k];
          sum += product, sizes += std::fabs(product);
        }
        worst = std::max(worst, std::fabs(sum - out[m * n_rows + f]));
        size = std::max(size, sizes);
      }
    }
    expect(worst < 1e-5 * size, "the product is that of the numbers", layout.name, variant->name);
    std::vector<float> alone(n_rows);
    quantized.assign(quantized_bytes(1, n_columns), 0);
    quantize(*variant, x.data() + (n - 1) * n_columns, 1, n_columns, quantized.data());
    multiply(*variant, w, quantized.data(), 1, bias.data(), alone.data(), n_rows);
    expect(!std::memcmp(alone.data(), out.data() + (n - 1) * n_rows, n_rows * sizeof(float)), "a row alone is that row in company", layout.name, variant->name);
  }
}

void check_pool() {
  for (int n_threads : {1, 2, 4, 3}) {
    Pool::get().resize(n_threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::atomic<int>> visits(round % 7 * 13);
      parallel_for(visits.size(), [&](int64_t i) { ++visits[i]; });
      parallel_ranges(visits.size(), [&](int64_t i) { ++visits[i]; });
      expect(std::all_of(visits.begin(), visits.end(), [](auto& v) { return v == 2; }), "every chunk is visited once, in ranges too");
    }
  }
  std::vector<std::thread> callers;  // calls from several threads wait for each other; a Team's calls nest
  std::atomic<int64_t> total{0};
  for (int t = 0; t < 3; ++t)
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        Team team;
        parallel_for(8, [&](int64_t i) { parallel_for(2, [&](int64_t) { total += i; }); });
      }
    });
  for (std::thread& caller : callers) caller.join();
  expect(total == 3 * 50 * 28 * 2, "nested calls add up");
}

}  // namespace

int main() {
  std::mt19937 noise(1);
  check_pool();
  for (int format = 0; format < kFormats; ++format) {
    check_product(format, 1, 256, 3, noise);
    check_product(format, 21, 512, 31, noise);
  }
  n_failed += check_lanes() + check_stored() + check_head() + check_learn();
  std::printf("%d formats, variants", kFormats);
  for (const Variant* variant : variants()) std::printf(" %s", variant->name);
  std::printf(": %d failed\n", n_failed);
  return n_failed != 0;
}
