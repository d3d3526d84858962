// The kernels of one instruction set. Each is compiled in a file of its own, with flags of its own: nothing there may be shared with another file
// by the linker, which would keep one copy, so kernel.h is all templates over a type of the file's unnamed namespace.
#pragma once
#include <cstdint>
#include <vector>

#include "packed.h"

namespace pellucid {

struct Variant {
  const char* name;
  // Row group `x` of n <= 16 quantized rows times panels [first, last) -> out[row * out_stride + 16 * panel ...]; `panels` is panel 0's first byte.
  using Multiply = void (*)(const uint8_t* panels, int64_t n_columns, int64_t first, int64_t last, const uint8_t* x, int n, float* out, int64_t out_stride);
  Multiply multiply[kFormats];
  // One row group: n <= 16 rows of floats.
  void (*quantize)(const float* x, int n, int64_t n_columns, uint8_t* out);
  // Many row groups of 16, the same bits as one by one; `scratch`: many_bytes(panels, n_columns), on a line's boundary. Null where nothing is gained.
  using MultiplyMany = void (*)(const uint8_t* panels, int64_t n_columns, int64_t first, int64_t last, const uint8_t* x, int64_t n_groups, float* out,
                                int64_t out_stride, uint8_t* scratch);
  MultiplyMany multiply_many[kFormats];
  // Of each of the panels [first, last) the length of its longest row.
  void (*measure[kFormats])(const uint8_t* panels, int64_t n_columns, int64_t first, int64_t last, float* out);
};

// Codes as bytes, and two scales and minima of float32 a row, for 32 columns of a panel: what multiply_many unpacks panels to.
constexpr int64_t many_bytes(int64_t n_panels, int64_t n_columns) { return n_panels * (n_columns / kColumns) * (kPanel * kColumns + 4 * kPanel * 4); }

// Those that this processor runs, the best first; the last one, portable, runs everywhere. All are constants: making them runs no code.
const std::vector<const Variant*>& variants();

}  // namespace pellucid
