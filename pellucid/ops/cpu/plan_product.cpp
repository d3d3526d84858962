// A plan's products: rows of activations times matrices, packed or dense.
#include <cstring>

#include "plan_parts.h"

namespace pellucid {
namespace {

constexpr int64_t kTokensAtOnce = 32;  // whose numbers stay in a core's second cache beside a chunk of a dense matrix
constexpr int64_t kDenseBytes = 64 << 10;  // of a dense matrix in one chunk
constexpr int64_t kTiledBytes = 704 << 10;  // the same where many rows of x are multiplied with it in tiles: a third of a core's second cache
constexpr int64_t kTiledRows = 32;  // a chunk's rows are whole multiples of it, but for a matrix's last
constexpr int64_t kTilesAtOnce = 16;  // of a group of rows of x in one chunk, while they are rounded
constexpr int64_t kTiledChunks = 2;  // a thread, at least, of a matrix that is not small

// Beginning on a line's boundary. Two kinds: what is read by all threads lies beside what each of them works in.
struct alignas(64) Tile {
  uint8_t bytes[kTileBytes];
};
struct alignas(64) Room {
  uint8_t bytes[kTileBytes];
};

}  // namespace

// Rows of a dense matrix in one chunk.
int64_t Plan::rows_a_chunk(const Matrix& w, int64_t n) const {
  const int64_t row_bytes = w.n_columns * (w.kind == Kind::f32 ? 4 : 2);
  if (!in_tiles(w)) return std::max<int64_t>(1, kDenseBytes / row_bytes);
  const int64_t most = (n > kTileRows ? kTiledBytes : kDenseBytes) / row_bytes, even = w.n_rows / (kTiledChunks * Pool::get().size());
  return std::max(kTiledRows, std::min(most, even) / kTiledRows * kTiledRows);
}

// Reads of as many columns times matrices, all in one go.
void Plan::product(const std::vector<Read>& reads, const std::vector<Job>& jobs) {
  const int64_t D = matrices[jobs[0].matrix].n_columns;
  std::vector<int64_t> ends;  // of each job's chunks
  bool whole = false, tiles = false;
  for (const Job& job : jobs) {
    const Matrix& w = matrices[job.matrix];
    const int64_t n = reads[job.read].n, rows = w.panels ? 0 : rows_a_chunk(w, n);
    ends.push_back((ends.empty() ? 0 : ends.back()) +
                   (w.panels ? n_chunks(Packed{w.panels, w.format, w.n_rows, D}, n) : (w.n_rows + rows - 1) / rows));
    whole |= w.panels != nullptr, tiles |= in_tiles(w);
  }
  std::vector<int64_t> before(reads.size()), tiles_before(reads.size());  // rows, and groups of rows in tiles
  for (size_t r = 1; r < reads.size(); ++r)
    before[r] = before[r - 1] + reads[r - 1].n, tiles_before[r] = tiles_before[r - 1] + row_tiles(reads[r - 1].n);
  const uint8_t* quantized = whole ? in_bytes(reads, before, D) : nullptr;
  const uint8_t* packed = tiles ? in_tiles(reads, tiles_before, D) : nullptr;
  parallel_ranges(ends.back(), [&](int64_t chunk) {
    const size_t i = std::upper_bound(ends.begin(), ends.end(), chunk) - ends.begin();
    chunk -= i ? ends[i - 1] : 0;
    const auto& [matrix, read, out, stride] = jobs[i];
    const Matrix& w = matrices[matrix];
    const auto& [x, x_stride, n] = reads[read];
    if (w.panels)
      return multiply_chunk(variant, Packed{w.panels, w.format, w.n_rows, D}, quantized + quantized_bytes(before[read], D), n, w.bias, out, stride, chunk);
    const int64_t rows = rows_a_chunk(w, n), first = chunk * rows, last = std::min(first + rows, w.n_rows);
    if (in_tiles(w))
      tiled->multiply(static_cast<const Bf16*>(w.dense), D, first, last, packed + tiles_before[read] * pellucid::tiles(D) * kTileBytes, n, out, stride,
                      scratch<Room>(tiled_scratch_bytes(D) / kTileBytes)->bytes);
    else
      for (int64_t t = 0; t < n; t += kTokensAtOnce)
        lanes.multiply_dense(w.dense, w.kind, D, first, last, x + t * x_stride, x_stride, std::min(kTokensAtOnce, n - t), out + t * stride, stride);
    if (w.bias)
      for (int64_t t = 0; t < n; ++t)
        for (int64_t f = first; f < last; ++f) out[t * stride + f] += w.bias[f];
  });
}

// Rows as whole numbers of 8 bits, one read after another, in memory of this thread. before: the rows before each read.
const uint8_t* Plan::in_bytes(const std::vector<Read>& reads, const std::vector<int64_t>& before, int64_t D) const {
  const int64_t n_rows = before.back() + reads.back().n;
  uint8_t* out = scratch<uint8_t>(quantized_bytes(n_rows, D));
  each_token(n_rows, D, [&](int64_t row) {
    const size_t r = std::upper_bound(before.begin(), before.end(), row) - before.begin() - 1;
    const auto& [x, x_stride, n] = reads[r];
    const int64_t t = row - before[r], group = t / kRows * kRows, size = std::min<int64_t>(kRows, n - group);
    lanes.quantize_row(x + t * x_stride, D, static_cast<int>(t - group), static_cast<int>(size), out + quantized_bytes(before[r] + group, D));
  });
  return out;
}

// Rows as tiles of bfloat16, in memory of this thread. before: the groups of rows before each read.
const uint8_t* Plan::in_tiles(const std::vector<Read>& reads, const std::vector<int64_t>& before, int64_t D) const {
  const int64_t N = tiles(D), parts = (N + kTilesAtOnce - 1) / kTilesAtOnce, n_groups = before.back() + row_tiles(reads.back().n);
  uint8_t* out = scratch<Tile>(n_groups * N)->bytes;
  parallel_for(n_groups * parts, [&](int64_t chunk) {
    const int64_t group = chunk / parts, first = chunk % parts * kTilesAtOnce;
    const size_t r = std::upper_bound(before.begin(), before.end(), group) - before.begin() - 1;
    const int64_t t = (group - before[r]) * kTileRows, rows = std::min(kTileRows, reads[r].n - t);
    tiled->pack(reads[r].x + t * reads[r].stride, reads[r].stride, static_cast<int>(rows), D, first, std::min(first + kTilesAtOnce, N),
                out + (group * N + first) * kTileBytes);
  });
  return out;
}

}  // namespace pellucid
