// Attention over keys and values that lie in pages: what is asked, and how it is cut into pieces of work.
//
// A result depends on its own query and keys alone, to the last bit: a score is the sum over channels that attend_kernel.h says; kSpan keys, counted from the row's
// very first, make one softmax, and spans are put together in their order. How many queries, rows or threads there are changes none of it.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "numbers.h"

namespace pellucid {

constexpr int kTile = 32;              // keys whose scores are computed at once
constexpr int kSpan = 256;             // keys of one softmax
constexpr int64_t kQueries = 64;       // queries times heads of one piece: so often is a tile of keys used once it is in the cache
constexpr int64_t kWidest = 16;        // floats of a vector at most: rows of scratch are padded to it

constexpr int64_t padded(int64_t width) { return (width + kWidest - 1) / kWidest * kWidest; }

// (P, N, K, width): keys or values of all pages; scale (P, N, K), of 8-bit numbers.
struct PagePool {
  const void* data;
  const float* scale;
  Kind kind;
  int64_t width;
};

// Positions are the row's own, counted from its very first token.
struct AttendRow {
  const int32_t* table;  // pages, from position `base` on
  int64_t base;
  int64_t first, end;  // keys that are there
  int64_t n_queries;  // the last of them
  int64_t query;  // the first one's place among the queries of all rows
};

// Who sees whom. 0: no window, no chunks.
struct Sight {
  int64_t window, chunk;
  bool from_first;  // chunks are counted from the first key that is there, not from the row's first token
  bool causal;

  int64_t first(const AttendRow& row, int64_t position) const {
    int64_t first = row.first;
    if (window && position - window + 1 > first) first = position - window + 1;
    const int64_t zero = from_first ? row.first : 0, begin = chunk ? zero + (position - zero) / chunk * chunk : first;
    return begin > first ? begin : first;
  }
  int64_t last(const AttendRow& row, int64_t position) const {
    if (causal) return position;
    return window && position + window - 1 < row.end - 1 ? position + window - 1 : row.end - 1;
  }
};

struct Attend {
  const void* q;  // (T, H, C), and out, with the values' width
  void* out;
  Kind kind;  // of both
  int64_t q_stride, out_stride;  // numbers from one query to the next
  PagePool k, v;
  int64_t n_heads, n_kv_heads, d_head, page;
  float scale, softcap;  // 0: no cap
  Sight sight;
  const float *sinks, *slopes;  // (H,), or null
};

// Some queries of one row with the keys of some heads, of some spans. Heads lie side by side: a single query reads several of them in one go.
struct Piece {
  int32_t row, head, n_heads;  // of keys
  int64_t query, n_queries;  // within the row
  int64_t span, n_spans;
  int64_t part;  // where the result goes, of one span of several; -1: all spans are here
  int32_t whole;  // of which piece that is a part
};

struct Whole {
  Piece piece{};
  int64_t part = 0;  // the first
  std::atomic<int64_t> n_missing;
};

// The pieces of a pass. Layers that see alike and have the same heads share them.
class Pieces {
 public:
  // n_threads: rows are cut by their keys too where there would be too few pieces for so many. The result does not depend on it.
  Pieces(std::vector<AttendRow> rows, const Sight& sight, int64_t n_heads, int64_t n_kv_heads, int64_t width, int n_threads);
  int64_t size() const { return static_cast<int64_t>(pieces_.size()); }
  void restart();  // before each layer
  int64_t scratch(const Attend& how) const;  // floats that a thread needs
  int64_t rows_at_once() const { return rows_at_once_; }  // queries times heads of the largest piece
  int64_t heads_at_once() const { return heads_at_once_; }  // of keys

  const AttendRow* rows() const { return rows_.data(); }
  const Piece& operator[](int64_t i) const { return pieces_[i]; }
  Whole& whole(int64_t i) const { return wholes_[i]; }
  float* part(int64_t i) { return parts_.data() + i * part_size_; }  // of each row of queries the largest score and the sum, then the values' sums

 private:
  std::vector<AttendRow> rows_;
  std::vector<Piece> pieces_;
  std::unique_ptr<Whole[]> wholes_;
  int64_t n_wholes_ = 0, part_size_ = 0, rows_at_once_ = 0, heads_at_once_ = 1;
  std::vector<float> parts_;
};

}  // namespace pellucid
