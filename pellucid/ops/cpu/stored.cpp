#include "stored.h"

#include <algorithm>
#include <vector>

#include "lanes_table.h"
#include "pool.h"

namespace pellucid {
namespace {

constexpr int64_t kUnpacked = 64 << 10;  // numbers: 256 KB, which with the rows of activations stay in a core's second cache
constexpr int64_t kTogether = 4;  // rows that a tile of the product takes at once
constexpr int64_t kNear = 24;  // rows of activations that stay near while all of a chunk is multiplied with them: four tiles' of the widest vectors

float* scratch(int64_t n) {  // that a thread keeps
  static thread_local std::vector<float> held;
  if (static_cast<int64_t>(held.size()) < n) held.resize(n);
  return held.data();
}

// What needs no unpacking.
const Kind* plain(int format) {
  static constexpr Kind f32 = Kind::f32, f16 = Kind::f16, bf16 = Kind::bf16;
  if (format == stored_as(Code::f32)) return &f32;
  if (format == stored_as(Code::f16)) return &f16;
  return format == stored_as(Code::bf16) ? &bf16 : nullptr;
}

}  // namespace

void multiply_stored(const Lanes& lanes, const Stored& w, const float* x, int64_t n, const float* bias, float* out) {
  const int64_t D = w.n_columns, F = w.n_rows, rows = std::max(kTogether, kUnpacked / D / kTogether * kTogether);
  const Kind* kind = plain(w.format);
  parallel_ranges((F + rows - 1) / rows, [&](int64_t chunk) {
    const int64_t first = chunk * rows, last = std::min(first + rows, F);
    const void* weight = w.data + first * w.row_bytes;
    if (!kind) {
      float* numbers = scratch((last - first) * D + kPast);
      lanes.unpack_rows(w, first, last, numbers);
      weight = numbers;
    }
    for (int64_t t = 0; t < n; t += kNear)
      lanes.multiply_dense(weight, kind ? *kind : Kind::f32, D, 0, last - first, x + t * D, D, std::min(kNear, n - t), out + t * F + first, F);
    if (bias)
      for (int64_t t = 0; t < n; ++t)
        for (int64_t f = first; f < last; ++f) out[t * F + f] += bias[f];
  });
}

}  // namespace pellucid
