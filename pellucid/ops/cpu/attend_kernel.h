// The arithmetic of attention, once for every width of vectors. See attend.h for what may not change a bit of it. R rows are queries times the
// heads that share keys: row r is head r % G of query r / G.
#pragma once
#include "attend.h"
#include "lanes.h"

namespace pellucid {
namespace {

constexpr float kNever = -__builtin_inff();

// What one thread works in.
struct Bench {
  float *q, *keys, *values, *scores, *acc, *total;  // (R, C) (C, kTile) (kTile, V) (R, kSpan) (R, V) (R, V)
  float *most, *sums, *total_most, *total_sums;  // (R,)
  int64_t R, G, V;

  Bench(float* p, const Attend& a, const Piece& piece) : G(a.n_heads / a.n_kv_heads), V(padded(a.v.width)) {
    const int64_t room = kQueries > G ? kQueries : G;
    R = piece.n_queries * G;
    q = p, keys = q + room * padded(a.d_head), values = keys + a.d_head * kTile, scores = values + kTile * V, acc = scores + room * kSpan;
    total = acc + room * V, most = total + room * V, sums = most + room, total_most = sums + room, total_sums = total_most + room;
  }
};

// Where a position's key or value lies, counted in keys.
inline int64_t place(const Attend& a, const AttendRow& row, int64_t position, int64_t head) {
  const int64_t at = position - row.base;
  return (row.table[at / a.page] * a.page + at % a.page) * a.n_kv_heads + head;
}

// Keys of the positions from `start` on, (C, kTile): turned around, so that a lane is a key. Zeros where there is none.
template <class T>
void stage_keys(const Attend& a, const AttendRow& row, int64_t head, int64_t start, float* out) {
  const T* data = static_cast<const T*>(a.k.data);
  const int64_t C = a.d_head;
  for (int t = 0; t < kTile; t += kLanes) {
    const T* from[kLanes];
    float scale[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int64_t position = start + t + i;
      const bool there = position >= row.first && position < row.end;
      const int64_t at = there ? place(a, row, position, head) : 0;
      from[i] = there ? data + at * C : nullptr;
      scale[i] = there && a.k.scale ? a.k.scale[at] : 1.0f;
    }
    int64_t c = 0;
    for (; c + kLanes <= C; c += kLanes) {
      F x[kLanes];
      PELLUCID_UNROLL for (int i = 0; i < kLanes; ++i) x[i] = from[i] ? load(from[i] + c) : F{};
      if (a.k.scale)
        for (int i = 0; i < kLanes; ++i) x[i] *= scale[i];
      transpose(x);
      PELLUCID_UNROLL for (int i = 0; i < kLanes; ++i) store(out + (c + i) * kTile + t, x[i]);
    }
    for (; c < C; ++c)
      for (int i = 0; i < kLanes; ++i) out[c * kTile + t + i] = from[i] ? wide(from[i][c]) * scale[i] : 0.0f;
  }
}

// Values of the positions from `start` on, (kTile, V). Zeros where there is none, and beyond their width.
template <class T>
void stage_values(const Attend& a, const AttendRow& row, int64_t head, int64_t start, int64_t V, float* out) {
  const T* data = static_cast<const T*>(a.v.data);
  const int64_t width = a.v.width;
  for (int t = 0; t < kTile; ++t, out += V) {
    const int64_t position = start + t;
    if (position < row.first || position >= row.end) {
      __builtin_memset(out, 0, V * sizeof(float));
      continue;
    }
    const int64_t at = place(a, row, position, head);
    const float scale = a.v.scale ? a.v.scale[at] : 1.0f;
    const T* from = data + at * width;
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes) store(out + c, load(from + c) * scale);
    for (; c < width; ++c) out[c] = wide(from[c]) * scale;
    for (; c < V; ++c) out[c] = 0.0f;
  }
}

// scores[r] = q[r] . keys, of n rows. Each is one chain over the channels.
template <int n>
void multiply_keys(const float* q, const float* keys, int64_t C, float* scores) {
  constexpr int N = 2;
  for (int t = 0; t < kTile; t += N * kLanes) {
    F sum[n][N] = {};
    for (int64_t c = 0; c < C; ++c) {
      F k[N];
      PELLUCID_UNROLL for (int i = 0; i < N; ++i) k[i] = load(keys + c * kTile + t + i * kLanes);
      PELLUCID_UNROLL for (int r = 0; r < n; ++r)
        PELLUCID_UNROLL for (int i = 0; i < N; ++i) sum[r][i] = fma(k[i], q[r * C + c], sum[r][i]);
    }
    PELLUCID_UNROLL for (int r = 0; r < n; ++r)
      PELLUCID_UNROLL for (int i = 0; i < N; ++i) store(scores + r * kSpan + t + i * kLanes, sum[r][i]);
  }
}

// acc[r] += scores[r] . values, of n rows and N vectors of channels. Each is one chain over the keys.
template <int n, int N>
void add_values(const float* scores, const float* values, int64_t V, int n_keys, float* acc) {
  F sum[n][N];
  PELLUCID_UNROLL for (int r = 0; r < n; ++r)
    PELLUCID_UNROLL for (int i = 0; i < N; ++i) sum[r][i] = load(acc + r * V + i * kLanes);
  for (int s = 0; s < n_keys; ++s) {
    F v[N];
    PELLUCID_UNROLL for (int i = 0; i < N; ++i) v[i] = load(values + s * V + i * kLanes);
    PELLUCID_UNROLL for (int r = 0; r < n; ++r)
      PELLUCID_UNROLL for (int i = 0; i < N; ++i) sum[r][i] = fma(v[i], scores[r * kSpan + s], sum[r][i]);
  }
  PELLUCID_UNROLL for (int r = 0; r < n; ++r)
    PELLUCID_UNROLL for (int i = 0; i < N; ++i) store(acc + r * V + i * kLanes, sum[r][i]);
}

template <int n>
void add_values_of_rows(const float* scores, const float* values, int64_t V, int n_keys, float* acc) {
  constexpr int N = kLanes == 16 ? 4 : 2;
  int64_t c = 0;
  for (; c + N * kLanes <= V; c += N * kLanes) add_values<n, N>(scores, values + c, V, n_keys, acc + c);
  for (; c < V; c += kLanes) add_values<n, 1>(scores, values + c, V, n_keys, acc + c);
}

// Scaled, capped, lowered by distance, hidden where the query does not see.
inline void finish_scores(const Attend& a, float* scores, int64_t start, int64_t position, int64_t first, int64_t last, float slope) {
  const bool whole = first <= start && last >= start + kTile - 1;
  for (int t = 0; t < kTile; t += kLanes) {
    F x = load(scores + t) * a.scale;
    if (a.softcap != 0.0f) x = tanh(x / a.softcap) * a.softcap;
    const I past = iota() + static_cast<int32_t>(start + t - position);  // how far the key is past the query
    if (slope != 0.0f) x += __builtin_convertvector(past, F) * slope;
    if (!whole) x = (past >= static_cast<int32_t>(first - position)) & (past <= static_cast<int32_t>(last - position)) ? x : all(kNever);
    store(scores + t, x);
  }
}

// One span of a piece: its largest score, sum and weighed values of every row. False if no query sees any of it.
template <class T>
bool attend_span(const Attend& a, const AttendRow& row, const Piece& piece, int64_t span, const Bench& w) {
  const int64_t zero = row.end - row.n_queries + piece.query;  // position of the first query
  const int64_t seen = a.sight.first(row, zero), past = a.sight.last(row, zero + piece.n_queries - 1) + 1;
  const int64_t from = (seen > span * kSpan ? seen : span * kSpan) / kTile * kTile, to = past < (span + 1) * kSpan ? past : (span + 1) * kSpan;
  if (from >= to) return false;
  for (int64_t start = from; start < to; start += kTile) {
    float* scores = w.scores + (start - span * kSpan);
    stage_keys<T>(a, row, piece.head, start, w.keys);
    int64_t r = 0;
    if constexpr (kLanes == 16)
      for (; r + 8 <= w.R; r += 8) multiply_keys<8>(w.q + r * a.d_head, w.keys, a.d_head, scores + r * kSpan);
    for (; r + 4 <= w.R; r += 4) multiply_keys<4>(w.q + r * a.d_head, w.keys, a.d_head, scores + r * kSpan);
    for (; r < w.R; ++r) multiply_keys<1>(w.q + r * a.d_head, w.keys, a.d_head, scores + r * kSpan);
    for (r = 0; r < w.R; ++r) {
      const int64_t position = zero + r / w.G;
      finish_scores(a, scores + r * kSpan, start, position, a.sight.first(row, position), a.sight.last(row, position),
                    a.slopes ? a.slopes[piece.head * w.G + r % w.G] : 0.0f);
    }
  }
  const int64_t begin = from - span * kSpan, end = (to - span * kSpan + kTile - 1) / kTile * kTile;
  for (int64_t r = 0; r < w.R; ++r) {
    float* scores = w.scores + r * kSpan;
    F most = all(kNever), sums{};
    for (int64_t s = begin; s < end; s += kLanes) most = larger(most, load(scores + s));
    w.most[r] = largest(most);
    for (int64_t s = begin; s < end; s += kLanes) {
      const F share = w.most[r] == kNever ? F{} : exp(load(scores + s) - w.most[r]);
      store(scores + s, share);
      sums += share;
    }
    w.sums[r] = sum(sums);
  }
  __builtin_memset(w.acc, 0, w.R * w.V * sizeof(float));
  for (int64_t s = begin; s < end; s += kTile) {
    stage_values<T>(a, row, piece.head, span * kSpan + s, w.V, w.values);
    const int64_t left = to - span * kSpan - s;
    const int n_keys = static_cast<int>(left < kTile ? left : kTile);
    int64_t r = 0;
    for (; r + 4 <= w.R; r += 4) add_values_of_rows<4>(w.scores + r * kSpan + s, w.values, w.V, n_keys, w.acc + r * w.V);
    for (; r < w.R; ++r) add_values_of_rows<1>(w.scores + r * kSpan + s, w.values, w.V, n_keys, w.acc + r * w.V);
  }
  return true;
}

inline void begin_total(const Bench& w) {
  __builtin_memset(w.total, 0, w.R * w.V * sizeof(float));
  for (int64_t r = 0; r < w.R; ++r) w.total_most[r] = kNever, w.total_sums[r] = 0.0f;
}

// Puts a span's result to that of the spans before it.
inline void add_span(const Bench& w, const float* most, const float* sums, const float* acc) {
  for (int64_t r = 0; r < w.R; ++r) {
    if (most[r] == kNever) continue;  // the query sees nothing there
    const float high = most[r] > w.total_most[r] ? most[r] : w.total_most[r];
    const float old = __builtin_expf(w.total_most[r] - high), young = __builtin_expf(most[r] - high);
    w.total_sums[r] = w.total_sums[r] * old + sums[r] * young;
    for (int64_t c = 0; c < w.V; c += kLanes) {
      float* total = w.total + r * w.V + c;
      store(total, fma(load(acc + r * w.V + c), young, load(total) * old));
    }
    w.total_most[r] = high;
  }
}

template <class T>
void read_queries(const Attend& a, const AttendRow& row, const Piece& piece, const Bench& w) {
  const int64_t n = w.G * a.d_head;
  for (int64_t i = 0; i < piece.n_queries; ++i) {
    const T* from = static_cast<const T*>(a.q) + (row.query + piece.query + i) * a.q_stride + piece.head * n;
    for (int64_t c = 0; c < n; ++c) w.q[i * n + c] = wide(from[c]);
  }
}

template <class T>
void write_result(const Attend& a, const AttendRow& row, const Piece& piece, const Bench& w) {
  for (int64_t r = 0; r < w.R; ++r) {
    const int64_t head = piece.head * w.G + r % w.G;
    T* to = static_cast<T*>(a.out) + (row.query + piece.query + r / w.G) * a.out_stride + head * a.v.width;
    float whole = w.total_sums[r], gain = 1.0f;
    if (a.sinks) {
      const float sink = a.sinks[head], high = sink > w.total_most[r] ? sink : w.total_most[r];
      gain = __builtin_expf(w.total_most[r] - high);
      whole = whole * gain + __builtin_expf(sink - high);
    }
    gain /= whole;
    for (int64_t c = 0; c < a.v.width; ++c) narrow(w.total[r * w.V + c] * gain, to[c]);
  }
}

template <class T>
void attend_as(const Attend& a, Pieces& pieces, const Piece& piece, float* scratch) {
  const AttendRow& row = pieces.rows()[piece.row];
  const Bench w(scratch, a, piece);
  if (a.kind == Kind::f32) read_queries<float>(a, row, piece, w);
  else if (a.kind == Kind::bf16) read_queries<Bf16>(a, row, piece, w);
  else read_queries<F16>(a, row, piece, w);
  if (piece.part < 0) {
    begin_total(w);
    for (int64_t span = piece.span; span < piece.span + piece.n_spans; ++span)
      if (attend_span<T>(a, row, piece, span, w)) add_span(w, w.most, w.sums, w.acc);
  } else {
    float* part = pieces.part(piece.part);
    if (attend_span<T>(a, row, piece, piece.span, w)) {
      __builtin_memcpy(part, w.most, w.R * sizeof(float));
      __builtin_memcpy(part + w.R, w.sums, w.R * sizeof(float));
      __builtin_memcpy(part + 2 * w.R, w.acc, w.R * w.V * sizeof(float));
    } else {
      for (int64_t r = 0; r < w.R; ++r) part[r] = kNever;
    }
    Whole& whole = pieces.whole(piece.whole);
    if (whole.n_missing.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    begin_total(w);  // the last to come puts them together
    for (int64_t i = 0; i < whole.piece.n_spans; ++i) {
      part = pieces.part(whole.part + i);
      add_span(w, part, part + w.R, part + 2 * w.R);
    }
  }
  if (a.kind == Kind::f32) write_result<float>(a, row, piece, w);
  else if (a.kind == Kind::bf16) write_result<Bf16>(a, row, piece, w);
  else write_result<F16>(a, row, piece, w);
}

// Piece i of a pass, in scratch of the thread's own.
void attend(const Attend& a, Pieces& pieces, int64_t i, float* scratch) {
  const Piece& piece = pieces[i];
  switch (a.k.kind) {
    case Kind::f32: return attend_as<float>(a, pieces, piece, scratch);
    case Kind::bf16: return attend_as<Bf16>(a, pieces, piece, scratch);
    case Kind::f16: return attend_as<F16>(a, pieces, piece, scratch);
    case Kind::i8: return attend_as<int8_t>(a, pieces, piece, scratch);
  }
}

}  // namespace
}  // namespace pellucid
