// Products with dense bfloat16 weights in a processor's tiles, compiled in a file of its own with flags of its own (see variant.h).
//
// Rows of x are rounded to bfloat16 once and laid out in tiles; a tile's columns are 16 of them, so that weights, which are its rows, are read as they lie.
// Every number is one sum over the columns in their order, in float32: the same bits whatever stands beside it.
#pragma once
#include <cstdint>

#include "numbers.h"

namespace pellucid {

constexpr int64_t kTileRows = 16, kTileColumns = 32, kTileBytes = 1024;  // of bfloat16 numbers
constexpr int64_t tiles(int64_t n_columns) { return (n_columns + kTileColumns - 1) / kTileColumns; }
constexpr int64_t row_tiles(int64_t n_rows) { return (n_rows + kTileRows - 1) / kTileRows; }
constexpr int64_t tiled_bytes(int64_t n_rows, int64_t n_columns) { return row_tiles(n_rows) * tiles(n_columns) * kTileBytes; }

// What `multiply` works in.
constexpr int64_t tiled_scratch_bytes(int64_t n_columns) { return (4 + 2 * tiles(n_columns)) * kTileBytes; }

struct Tiled {
  // Tiles [first, last) of a group of n <= 16 rows of floats; one group's tiles lie after the other's.
  void (*pack)(const float* x, int64_t x_stride, int n, int64_t n_columns, int64_t first, int64_t last, uint8_t* out);
  // Rows [first, last) of a weight (F, n_columns) times n rows in tiles -> out[row * out_stride + f]. `scratch`: tiled_scratch_bytes, on a line's boundary.
  void (*multiply)(const Bf16* weight, int64_t n_columns, int64_t first, int64_t last, const uint8_t* x, int64_t n, float* out, int64_t out_stride,
                   uint8_t* scratch);
};

const Tiled* tiled_named(const char* variant);  // null where this processor has none, or the variant is not the one with tiles

}  // namespace pellucid
