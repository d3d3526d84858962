// Attention of few queries: keys and values are read where they lie, a lane is a channel. See attend.h for what may not change a bit of it, and
// attend_kernel.h for many queries, whose scores and sums are the same.
#pragma once
#include "attend.h"
#include "lanes.h"

namespace pellucid {
namespace {

constexpr int64_t kFew = 16;  // rows (queries times heads that share keys) at most: more gain from keys turned around

// Where the keys or values of a tile's positions lie, counted in keys of all heads; -1 where there is none.
struct Places {
  int64_t at[kTile];

  Places(const Attend& a, const AttendRow& row, int64_t head, int64_t start) {
    const int64_t first = row.first > start ? row.first : start, end = row.end < start + kTile ? row.end : start + kTile;
    for (int t = 0; t < kTile; ++t) at[t] = -1;
    if (first >= end) return;
    int64_t page = (first - row.base) / a.page, within = (first - row.base) % a.page;  // a division takes as long as a key's products: one a tile
    for (int64_t position = first; position < end; ++page, within = 0) {
      const int64_t left = end - position, n = a.page - within < left ? a.page - within : left, here = (row.table[page] * a.page + within) * a.n_kv_heads + head;
      for (int64_t i = 0; i < n; ++i) at[position - start + i] = here + i * a.n_kv_heads;
      position += n;
    }
  }
};

// Asks for what lies there of the next tile, while this one is computed with.
template <class T>
inline void ask_for(const T* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + i);
}

// The same scores from keys where they lie, for few rows: every key is read once, and no time is spent on turning it around.
template <class T, int n>
void score_keys(const Attend& a, const Places& places, const Places& next, int64_t head, const float* q, float* scores) {
  constexpr int M = kLanes < 16 ? 1 : n < 8 ? 4 : 2;  // keys at once, for which a query's numbers are read once
  const int64_t C = a.d_head;
  float parts[n][kLanes][kLanes];
  for (int t = 0; t < kTile; t += kLanes) {
    for (int i = 0; i < kLanes; i += M) {
      const T* keys[M];
      float scales[M];
      F sum[n][M] = {};
      PELLUCID_UNROLL for (int m = 0; m < M; ++m) {
        const int64_t at = places.at[t + i + m], after = next.at[t + i + m];
        if (after >= 0) ask_for(static_cast<const T*>(a.k.data) + (after + head) * C, C);
        if (at >= 0) ask_for(static_cast<const T*>(a.v.data) + (at + head) * a.v.width, a.v.width);
        keys[m] = at < 0 ? nullptr : static_cast<const T*>(a.k.data) + (at + head) * C;
        scales[m] = at >= 0 && a.k.scale ? a.k.scale[at + head] : 1.0f;
      }
      for (int64_t c = 0; c < C; c += kLanes) {
        F k[M];
        PELLUCID_UNROLL for (int m = 0; m < M; ++m) {
          k[m] = keys[m] ? load(keys[m] + c) : F{};
          if (sizeof(T) == 1) k[m] *= scales[m];
        }
        PELLUCID_UNROLL for (int r = 0; r < n; ++r) {
          const F y = load(q + r * C + c);
          PELLUCID_UNROLL for (int m = 0; m < M; ++m) sum[r][m] = fma(k[m], y, sum[r][m]);
        }
      }
      PELLUCID_UNROLL for (int r = 0; r < n; ++r)
        PELLUCID_UNROLL for (int m = 0; m < M; ++m) store(parts[r][i + m], sum[r][m]);
    }
    for (int r = 0; r < n; ++r) {
      F x[kLanes];
      PELLUCID_UNROLL for (int i = 0; i < kLanes; ++i) x[i] = load(parts[r][i]);
      add_up(x);
      store(scores + r * kSpan + t, x[0]);
    }
  }
}

template <class T>
void score_keys_of_rows(const Attend& a, const Places& places, const Places& next, int64_t head, const float* q, int64_t R,
                        float* scores) {
  int64_t r = 0;
  for (; r + 8 <= R; r += 8) score_keys<T, 8>(a, places, next, head, q + r * a.d_head, scores + r * kSpan);
  for (; r + 4 <= R; r += 4) score_keys<T, 4>(a, places, next, head, q + r * a.d_head, scores + r * kSpan);
  for (; r + 2 <= R; r += 2) score_keys<T, 2>(a, places, next, head, q + r * a.d_head, scores + r * kSpan);
  for (; r < R; ++r) score_keys<T, 1>(a, places, next, head, q + r * a.d_head, scores + r * kSpan);
}

// acc[r] += scores[r] . values where they lie, of n rows and N vectors of channels from c on: the same chains as in add_values.
template <class T, int n, int N>
void weigh_values(const Attend& a, const Places& places, int64_t head, const float* scores, int64_t V, int n_keys, int64_t c, float* acc) {
  F sum[n][N];
  PELLUCID_UNROLL for (int r = 0; r < n; ++r)
    PELLUCID_UNROLL for (int i = 0; i < N; ++i) sum[r][i] = load(acc + r * V + c + i * kLanes);
  for (int s = 0; s < n_keys; ++s) {
    const int64_t at = places.at[s];
    if (at < 0) continue;  // its share is zero
    const T* value = static_cast<const T*>(a.v.data) + (at + head) * a.v.width + c;
    F v[N];
    PELLUCID_UNROLL for (int i = 0; i < N; ++i) {
      v[i] = load(value + i * kLanes);
      if (sizeof(T) == 1 && a.v.scale) v[i] *= a.v.scale[at + head];
    }
    PELLUCID_UNROLL for (int r = 0; r < n; ++r)
      PELLUCID_UNROLL for (int i = 0; i < N; ++i) sum[r][i] = fma(v[i], scores[r * kSpan + s], sum[r][i]);
  }
  PELLUCID_UNROLL for (int r = 0; r < n; ++r)
    PELLUCID_UNROLL for (int i = 0; i < N; ++i) store(acc + r * V + c + i * kLanes, sum[r][i]);
}

template <class T, int n, int N>
void weigh_values_of(const Attend& a, const Places& places, int64_t head, const float* scores, int64_t V, int n_keys, float* acc) {
  int64_t c = 0;
  for (; c + N * kLanes <= V; c += N * kLanes) weigh_values<T, n, N>(a, places, head, scores, V, n_keys, c, acc);
  for (; c < V; c += kLanes) weigh_values<T, n, 1>(a, places, head, scores, V, n_keys, c, acc);
}

template <class T>
void weigh_values_of_rows(const Attend& a, const Places& places, int64_t head, const float* scores, int64_t R, int64_t V, int n_keys,
                          float* acc) {
  int64_t r = 0;
  if constexpr (kLanes == 16)
    for (; r + 8 <= R; r += 8) weigh_values_of<T, 8, 2>(a, places, head, scores + r * kSpan, V, n_keys, acc + r * V);
  for (; r + 4 <= R; r += 4) weigh_values_of<T, 4, kLanes == 16 ? 4 : 2>(a, places, head, scores + r * kSpan, V, n_keys, acc + r * V);
  for (; r < R; ++r) weigh_values_of<T, 1, 4>(a, places, head, scores + r * kSpan, V, n_keys, acc + r * V);
}

}  // namespace
}  // namespace pellucid
