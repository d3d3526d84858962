// Products on bytes as files have them, by every variant, in memory that is as large as it must be and no larger. See check.cpp.
#include <cstdio>
#include <random>
#include <vector>

#include "lanes_table.h"
#include "stored.h"
#include "variant.h"

using namespace pellucid;

namespace {

// Numbers in a grid: points of 4 or 8, as many as an index reaches.
int64_t grid_numbers(int format) {
  if (format < kFormats || format > stored_as(Code::iq1_m)) return 0;
  const int64_t sizes[] = {256 * 8, 512 * 8, 1024 * 8, 256 * 4, 512 * 4, 2048 * 8, 2048 * 8};
  return sizes[format - kFormats];
}

// Whether rows alone are those of many, and every one of the numbers was computed.
bool holds(const Lanes& lanes, const Stored& w, std::mt19937& noise) {
  constexpr int64_t n = 26;
  std::vector<float> x(n * w.n_columns), together(n * w.n_rows), alone(n * w.n_rows);
  for (float& y : x) y = static_cast<float>(static_cast<int>(noise() % 15) - 7);
  multiply_stored(lanes, w, x.data(), n, nullptr, together.data());
  for (int64_t t = 0; t < n; ++t) multiply_stored(lanes, w, x.data() + t * w.n_columns, 1, nullptr, alone.data() + t * w.n_rows);
  double size = 0;
  for (float y : together) size += y == y ? y * double(y) : 0;
  return size > 0 && alone == together;
}

}  // namespace

int check_stored() {
  std::mt19937 noise(3);
  int n_failed = 0;
  const auto expect = [&](bool fact, const char* what, const char* variant) {
    if (fact) return;
    ++n_failed;
    std::printf("failed: rows of %s are the same bits alone %s\n", what, variant);
  };
  for (const Variant* variant : variants()) {
    const Lanes& lanes = lanes_named(variant->name);
    for (int format = 0; format < stored_as(Code::groups); ++format) {
      const int block = format < kFormats ? kLayouts[format].block : kCoded[format - kFormats].block;
      const int bytes = format < kFormats ? kLayouts[format].source_bytes : kCoded[format - kFormats].bytes;
      const int64_t D = block == 1 ? 77 : 512, F = 9, row_bytes = D / block * bytes;
      std::vector<uint8_t> data(F * row_bytes);
      for (uint8_t& b : data) b = static_cast<uint8_t>(noise()) & 0x3b;  // no half float or exponent of theirs is past the middle
      std::vector<float> grid(grid_numbers(format));
      for (float& y : grid) y = static_cast<float>(noise() % 44);
      expect(holds(lanes, {format, data.data(), row_bytes, F, D, grid.data(), 0, 0, nullptr, nullptr, 0.0f}, noise),
             format < kFormats ? kLayouts[format].name : kCoded[format - kFormats].name, variant->name);
    }
    for (int64_t each : {1, 2, 4}) {  // codes in a byte
      const int64_t D = 95, F = 9, group = 40, row_bytes = (D + each - 1) / each;
      std::vector<uint8_t> codes(F * row_bytes);
      for (uint8_t& b : codes) b = static_cast<uint8_t>(noise());
      std::vector<float> table(256 * each), scales(F * 3), zeros(F * 3);
      for (auto* of : {&table, &scales, &zeros})
        for (float& y : *of) y = static_cast<float>(noise() % 16);
      for (const float* zero : {static_cast<const float*>(zeros.data()), static_cast<const float*>(nullptr)})
        expect(holds(lanes, {stored_as(Code::groups), codes.data(), row_bytes, F, D, table.data(), each, group, scales.data(), zero, 2.0f}, noise), "groups",
               variant->name);
    }
  }
  return n_failed;
}
