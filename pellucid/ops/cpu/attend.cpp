#include "attend.h"

#include <algorithm>
#include <utility>

namespace pellucid {

constexpr int64_t kEach = 4;  // pieces for each thread, or rows are cut by their keys too

Pieces::Pieces(std::vector<AttendRow> rows, const Sight& sight, int64_t n_heads, int64_t n_kv_heads, int64_t width, int n_threads) : rows_(std::move(rows)) {
  const int64_t group = n_heads / n_kv_heads, block = std::max<int64_t>(1, kQueries / group), n_rows = static_cast<int64_t>(rows_.size());
  const int64_t enough = n_rows * n_kv_heads / n_threads;  // heads in one piece that leave pieces for every thread: what lies side by side is read in one go
  const int64_t heads = std::max<int64_t>(1, std::min({n_kv_heads, enough, kQueries / group}));
  for (int64_t b = 0; b < n_rows; ++b) {
    const AttendRow& row = rows_[b];
    for (int64_t q = 0; q < row.n_queries; q += block) {
      const int64_t n = std::min(block, row.n_queries - q), position = row.end - row.n_queries + q, at_once = n == 1 ? heads : 1;
      const int64_t first = sight.first(row, position) / kSpan, last = sight.last(row, position + n - 1) / kSpan;
      for (int64_t head = 0; head < n_kv_heads; head += at_once) {
        const int32_t n_here = static_cast<int32_t>(std::min(at_once, n_kv_heads - head));
        pieces_.push_back({static_cast<int32_t>(b), static_cast<int32_t>(head), n_here, q, n, first, last - first + 1, -1, -1});
        rows_at_once_ = std::max(rows_at_once_, n_here * n * group);
        heads_at_once_ = std::max<int64_t>(heads_at_once_, n_here);
      }
    }
  }
  if (n_threads > 1 && size() < kEach * n_threads) {
    std::vector<Piece> finer;
    int64_t n_parts = 0;
    wholes_ = std::make_unique<Whole[]>(pieces_.size());
    for (const Piece& piece : pieces_) {
      if (piece.n_spans == 1) {
        finer.push_back(piece);
        continue;
      }
      Whole& whole = wholes_[n_wholes_];
      whole.piece = piece, whole.part = n_parts;
      for (int64_t i = 0; i < piece.n_spans; ++i)
        finer.push_back({piece.row, piece.head, piece.n_heads, piece.query, piece.n_queries, piece.span + i, 1, n_parts++, static_cast<int32_t>(n_wholes_)});
      ++n_wholes_;
    }
    pieces_ = std::move(finer);
    part_size_ = rows_at_once_ * (2 + padded(width));
    parts_.resize(n_parts * part_size_);
  }
  // The longest first, so that what is left for the last thread is short.
  std::stable_sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) { return a.n_spans * a.n_queries * a.n_heads > b.n_spans * b.n_queries * b.n_heads; });
  restart();
}

void Pieces::restart() {
  for (int64_t i = 0; i < n_wholes_; ++i) wholes_[i].n_missing.store(wholes_[i].piece.n_spans, std::memory_order_relaxed);
}

int64_t Pieces::scratch(const Attend& how) const {
  const int64_t R = rows_at_once_, C = how.d_head, V = padded(how.v.width);
  return R * padded(C) + heads_at_once_ * (padded(C) * kTile + kTile * V) + R * kSpan + 2 * R * V + 4 * R;
}

}  // namespace pellucid
