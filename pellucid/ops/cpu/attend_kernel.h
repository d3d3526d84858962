// The arithmetic of attention, once for every width of vectors. See attend.h for what may not change a bit of it. R rows are queries times the
// heads that share keys: row r is head r % G of query r / G.
#pragma once
#include "attend_few.h"

namespace pellucid {
namespace {

constexpr float kNever = -__builtin_inff();
constexpr float kNothing = -46.0f;  // scores so far below the largest have shares below 1e-20: zeros, or products with them would be subnormal and slow

inline float share(float score) { return score < kNothing ? 0.0f : __builtin_expf(score); }

// What one thread works in. R rows of each of N heads of keys.
struct Bench {
  float *q, *keys, *values, *scores, *acc, *total;  // (N R, C) (N, C, kTile) (N, kTile, V) (N R, kSpan) (N R, V) (N R, V)
  float *most, *sums, *total_most, *total_sums;  // (N R,)
  int64_t R, N, G, V;

  Bench(float* p, const Attend& a, const Pieces& pieces, const Piece& piece) : N(piece.n_heads), G(a.n_heads / a.n_kv_heads), V(padded(a.v.width)) {
    const int64_t room = pieces.rows_at_once(), heads = pieces.heads_at_once(), C = padded(a.d_head);
    R = piece.n_queries * G;
    q = p, keys = q + room * C, values = keys + heads * C * kTile, scores = values + heads * kTile * V, acc = scores + room * kSpan;
    total = acc + room * V, most = total + room * V, sums = most + room, total_most = sums + room, total_sums = total_most + room;
  }
};

// Keys of the places, (N, C, kTile): turned around, so that a lane is a key. Zeros where there is none.
template <class T>
void stage_keys(const Attend& a, const Places& places, int64_t N, float* out) {
  const T* data = static_cast<const T*>(a.k.data);
  const int64_t C = a.d_head;
  for (int t = 0; t < kTile; t += kLanes) {
    for (int64_t head = 0; head < N; ++head) {
      const T* from[kLanes];
      float scale[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t at = places.at[t + i];
        from[i] = at < 0 ? nullptr : data + (at + head) * C;
        scale[i] = at >= 0 && a.k.scale ? a.k.scale[at + head] : 1.0f;
      }
      float* to = out + head * C * kTile + t;
      int64_t c = 0;
      for (; c + kLanes <= C; c += kLanes) {
        F x[kLanes];
        PELLUCID_UNROLL for (int i = 0; i < kLanes; ++i) x[i] = from[i] ? load(from[i] + c) : F{};
        if (a.k.scale)
          for (int i = 0; i < kLanes; ++i) x[i] *= scale[i];
        transpose(x);
        PELLUCID_UNROLL for (int i = 0; i < kLanes; ++i) store(to + (c + i) * kTile, x[i]);
      }
      for (; c < C; ++c)
        for (int i = 0; i < kLanes; ++i) to[c * kTile + i] = from[i] ? wide(from[i][c]) * scale[i] : 0.0f;
    }
  }
}

// Values of the places, (N, kTile, V). Zeros where there is none, and beyond their width.
template <class T>
void stage_values(const Attend& a, const Places& places, int64_t N, int64_t V, float* out) {
  const T* data = static_cast<const T*>(a.v.data);
  const int64_t width = a.v.width;
  for (int t = 0; t < kTile; ++t) {
    const int64_t at = places.at[t];
    for (int64_t head = 0; head < N; ++head) {
      float* to = out + (head * kTile + t) * V;
      if (at < 0) {
        __builtin_memset(to, 0, V * sizeof(float));
        continue;
      }
      const float scale = a.v.scale ? a.v.scale[at + head] : 1.0f;
      const T* from = data + (at + head) * width;
      int64_t c = 0;
      for (; c + kLanes <= width; c += kLanes) store(to + c, load(from + c) * scale);
      for (; c < width; ++c) to[c] = wide(from[c]) * scale;
      for (; c < V; ++c) to[c] = 0.0f;
    }
  }
}

// The products' sums over channels J, J + D, J + 2 D...: those of J + i kLanes are one chain, and chains are added up as lanes are in `sum`. So a score
// has the same bits whether a lane is a key, as here, or a channel, as where queries are few.
template <int n, int N, int D, int J>
__attribute__((always_inline)) inline void sum_products(const float* q, const float* keys, int64_t C, F (&out)[n][N]) {
  if constexpr (D == kLanes) {
    PELLUCID_UNROLL for (int r = 0; r < n; ++r)
      PELLUCID_UNROLL for (int i = 0; i < N; ++i) out[r][i] = F{};
    for (int64_t c = J; c < C; c += kLanes) {
      F k[N];
      PELLUCID_UNROLL for (int i = 0; i < N; ++i) k[i] = load(keys + c * kTile + i * kLanes);
      PELLUCID_UNROLL for (int r = 0; r < n; ++r)
        PELLUCID_UNROLL for (int i = 0; i < N; ++i) out[r][i] = fma(k[i], q[r * C + c], out[r][i]);
    }
  } else {
    F more[n][N];
    sum_products<n, N, 2 * D, J>(q, keys, C, out);
    sum_products<n, N, 2 * D, J + D>(q, keys, C, more);
    PELLUCID_UNROLL for (int r = 0; r < n; ++r)
      PELLUCID_UNROLL for (int i = 0; i < N; ++i) out[r][i] += more[r][i];
  }
}

// scores[r] = q[r] . keys, of n rows.
template <int n>
void multiply_keys(const float* q, const float* keys, int64_t C, float* scores) {
  constexpr int N = 2;
  for (int t = 0; t < kTile; t += N * kLanes) {
    F sum[n][N];
    sum_products<n, N, 1, 0>(q, keys + t, C, sum);
    PELLUCID_UNROLL for (int r = 0; r < n; ++r)
      PELLUCID_UNROLL for (int i = 0; i < N; ++i) store(scores + r * kSpan + t + i * kLanes, sum[r][i]);
  }
}

inline void multiply_keys_of_rows(const float* q, const float* keys, int64_t C, int64_t R, float* scores) {
  int64_t r = 0;
  if constexpr (kLanes == 16)
    for (; r + 8 <= R; r += 8) multiply_keys<8>(q + r * C, keys, C, scores + r * kSpan);
  for (; r + 4 <= R; r += 4) multiply_keys<4>(q + r * C, keys, C, scores + r * kSpan);
  for (; r < R; ++r) multiply_keys<1>(q + r * C, keys, C, scores + r * kSpan);
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

// Which head of queries row r is of.
inline int64_t query_head(const Piece& piece, const Bench& w, int64_t r) { return (piece.head + r / w.R) * w.G + r % w.G; }

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
  const bool few = w.R <= kFew && a.d_head % kLanes == 0 && a.v.width % kLanes == 0;  // keys and values are read where they lie
  Places next(a, row, piece.head, from);
  for (int64_t start = from; start < to; start += kTile) {
    float* scores = w.scores + (start - span * kSpan);
    const Places places = next;
    next = Places(a, row, piece.head, start + kTile);
    if (!few) stage_keys<T>(a, places, w.N, w.keys);
    for (int64_t head = 0; head < w.N; ++head) {
      const float* q = w.q + head * w.R * a.d_head;
      if (few) score_keys_of_rows<T>(a, places, next, head, q, w.R, scores + head * w.R * kSpan);
      else multiply_keys_of_rows(q, w.keys + head * a.d_head * kTile, a.d_head, w.R, scores + head * w.R * kSpan);
    }
    for (int64_t r = 0; r < w.N * w.R; ++r) {
      const int64_t position = zero + r % w.R / w.G;
      finish_scores(a, scores + r * kSpan, start, position, a.sight.first(row, position), a.sight.last(row, position),
                    a.slopes ? a.slopes[query_head(piece, w, r)] : 0.0f);
    }
  }
  const int64_t begin = from - span * kSpan, end = (to - span * kSpan + kTile - 1) / kTile * kTile;
  for (int64_t r = 0; r < w.N * w.R; ++r) {
    float* scores = w.scores + r * kSpan;
    F most = all(kNever), sums{};
    for (int64_t s = begin; s < end; s += kLanes) most = larger(most, load(scores + s));
    w.most[r] = largest(most);
    for (int64_t s = begin; s < end; s += kLanes) {
      const F below = load(scores + s) - w.most[r], shares = w.most[r] == kNever ? F{} : below < kNothing ? F{} : exp(below);
      store(scores + s, shares);
      sums += shares;
    }
    w.sums[r] = sum(sums);
  }
  __builtin_memset(w.acc, 0, w.N * w.R * w.V * sizeof(float));
  for (int64_t s = begin; s < end; s += kTile) {
    const Places places(a, row, piece.head, span * kSpan + s);
    if (!few) stage_values<T>(a, places, w.N, w.V, w.values);
    const int64_t left = to - span * kSpan - s;
    const int n_keys = static_cast<int>(left < kTile ? left : kTile);
    for (int64_t head = 0; head < w.N; ++head) {
      int64_t r = head * w.R, last = r + w.R;
      if (few) {
        weigh_values_of_rows<T>(a, places, head, w.scores + r * kSpan + s, w.R, w.V, n_keys, w.acc + r * w.V);
        continue;
      }
      const float* values = w.values + head * kTile * w.V;
      for (; r + 4 <= last; r += 4) add_values_of_rows<4>(w.scores + r * kSpan + s, values, w.V, n_keys, w.acc + r * w.V);
      for (; r < last; ++r) add_values_of_rows<1>(w.scores + r * kSpan + s, values, w.V, n_keys, w.acc + r * w.V);
    }
  }
  return true;
}

inline void begin_total(const Bench& w) {
  __builtin_memset(w.total, 0, w.N * w.R * w.V * sizeof(float));
  for (int64_t r = 0; r < w.N * w.R; ++r) w.total_most[r] = kNever, w.total_sums[r] = 0.0f;
}

// Puts a span's result to that of the spans before it.
inline void add_span(const Bench& w, const float* most, const float* sums, const float* acc) {
  for (int64_t r = 0; r < w.N * w.R; ++r) {
    if (most[r] == kNever) continue;  // the query sees nothing there
    const float high = most[r] > w.total_most[r] ? most[r] : w.total_most[r];
    const float old = share(w.total_most[r] - high), young = share(most[r] - high);
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
  for (int64_t r = 0; r < w.N * w.R; ++r) {
    const T* from = static_cast<const T*>(a.q) + (row.query + piece.query + r % w.R / w.G) * a.q_stride + query_head(piece, w, r) * a.d_head;
    for (int64_t c = 0; c < a.d_head; ++c) w.q[r * a.d_head + c] = wide(from[c]);
  }
}

template <class T>
void write_result(const Attend& a, const AttendRow& row, const Piece& piece, const Bench& w) {
  for (int64_t r = 0; r < w.N * w.R; ++r) {
    const int64_t head = query_head(piece, w, r);
    T* to = static_cast<T*>(a.out) + (row.query + piece.query + r % w.R / w.G) * a.out_stride + head * a.v.width;
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
  const Bench w(scratch, a, pieces, piece);
  const int64_t n = w.N * w.R;
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
      __builtin_memcpy(part, w.most, n * sizeof(float));
      __builtin_memcpy(part + n, w.sums, n * sizeof(float));
      __builtin_memcpy(part + 2 * n, w.acc, n * w.V * sizeof(float));
    } else {
      for (int64_t r = 0; r < n; ++r) part[r] = kNever;
    }
    Whole& whole = pieces.whole(piece.whole);
    if (whole.n_missing.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    begin_total(w);  // the last to come puts them together
    for (int64_t i = 0; i < whole.piece.n_spans; ++i) {
      part = pieces.part(whole.part + i);
      add_span(w, part, part + n, part + 2 * n);
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
