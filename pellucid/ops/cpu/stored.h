// Products in float32 with matrices as files hold them: a few rows are unpacked into a core's own cache, multiplied there, and forgotten.
#pragma once
#include <cstdint>

#include "packed.h"

namespace pellucid {

struct Lanes;  // lanes_table.h

// What has no panels, after the formats of kLayouts: the blocks that ops/codebooks.py and ops/unpack.py explain, plain numbers, and rows in groups
// (weights/group_rows.py), which are no blocks.
enum class Code : int { iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s, iq1_s, iq1_m, tq1_0, tq2_0, nvfp4, f32, f16, bf16, groups };
struct Coded {
  const char* name;
  int block, bytes;  // numbers of a block, and what it takes
};
inline constexpr Coded kCoded[] = {{"IQ2_XXS", 256, 66}, {"IQ2_XS", 256, 74}, {"IQ2_S", 256, 82}, {"IQ3_XXS", 256, 98}, {"IQ3_S", 256, 110},
                                   {"IQ1_S", 256, 50}, {"IQ1_M", 256, 56}, {"TQ1_0", 256, 54}, {"TQ2_0", 256, 66}, {"NVFP4", 64, 36},
                                   {"F32", 1, 4}, {"F16", 1, 2}, {"BF16", 1, 2}, {"groups", 0, 0}};
constexpr int kStored = kFormats + static_cast<int>(sizeof kCoded / sizeof *kCoded);
constexpr int stored_as(Code code) { return kFormats + static_cast<int>(code); }

struct Stored {
  int format;  // of kLayouts, and then of kCoded
  const uint8_t* data;
  int64_t row_bytes, n_rows, n_columns;
  const float* table;  // the points of a grid, or what the codes of every byte mean, `each` of them
  // Of groups:
  int64_t each, group;
  const float *scales, *zeros;  // (n_rows, groups); zeros may be null
  float zero;  // what is taken off then
};

int stored_format(const char* name);  // of `Stored`, or an error of Python's

constexpr int64_t kPast = 3;  // numbers that unpacking may write after the last row's

// out (n, w.n_rows) = x @ w.T + bias; bias may be null. Whatever stands beside a row, and however many threads work: the same bits.
void multiply_stored(const Lanes& lanes, const Stored& w, const float* x, int64_t n, const float* bias, float* out);

}  // namespace pellucid
