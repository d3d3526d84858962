// AMX-BF16: tiles of 16 rows of 32 numbers times 16 rows of 16 pairs.
//
// A matrix M (rows, columns) is laid out in tiles in one of four ways, n a tile's number along the other side:
//   rows     as a first factor:                  16 rows, 32 columns of each
//   turned   as a second factor over M's columns: 16 pairs of columns, of each 16 rows
//   paired   as a second factor over M's rows:    16 pairs of rows, of each 16 columns
//   columns  as a first factor, turned around:    16 columns, 32 rows of each
#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "attend_learn.h"
#include "lanes.h"

namespace pellucid {
namespace {

constexpr int64_t kTile = 1024, kSide = 16, kDepth = 32;  // bytes, rows, numbers of a row
constexpr int64_t kKeys = 64, kQueries = 64;              // of a block of back
constexpr int64_t kSeen = 256, kAsked = 32;               // keys and queries of a block of forward

constexpr int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

struct alignas(64) Config {  // eight tiles of 16 rows of 64 bytes: https://www.intel.com/content/www/us/en/docs/intrinsics-guide, LDTILECFG
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles of one factor: `side` bytes to the next 16 rows (or columns), `depth` bytes to the next 32 numbers that are summed.
struct Factor {
  const uint8_t* at;
  int64_t side, depth;
};

template <bool add>
inline void product(const Factor& a, const Factor& b, int64_t n_steps, float* out, int64_t stride) {  // of 2 x 2 tiles
  if constexpr (add) {
    _tile_loadd(0, out, 4 * stride); _tile_loadd(1, out + 16, 4 * stride);
    _tile_loadd(2, out + 16 * stride, 4 * stride); _tile_loadd(3, out + 16 * stride + 16, 4 * stride);
  } else {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  }
  const uint8_t *p = a.at, *r = b.at;
  for (int64_t i = 0; i < n_steps; ++i, p += a.depth, r += b.depth) {
    _tile_loadd(4, p, 64); _tile_loadd(6, r, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, r + b.side, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, p + a.side, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, 4 * stride); _tile_stored(1, out + 16, 4 * stride);
  _tile_stored(2, out + 16 * stride, 4 * stride); _tile_stored(3, out + 16 * stride + 16, 4 * stride);
}

// out (n_a, n_b), both multiples of 32: of n_steps times 32 numbers each.
template <bool add>
void products(Factor a, Factor b, int64_t n_a, int64_t n_b, int64_t n_steps, float* out, int64_t stride) {
  for (int64_t i = 0; i < n_a; i += 32)
    for (int64_t j = 0; j < n_b; j += 32)
      product<add>({a.at + i / 16 * a.side, a.side, a.depth}, {b.at + j / 16 * b.side, b.side, b.depth}, n_steps, out + i * stride + j, stride);
}

// 32 numbers of row r from column c of n_rows x n_columns, zeros outside.
inline __m512i line(const Bf16* m, int64_t stride, int64_t r, int64_t c, int64_t n_rows, int64_t n_columns) {
  const int64_t left = r < n_rows ? n_columns - c : 0;
  const __mmask32 mask = left >= 32 ? ~__mmask32{0} : left <= 0 ? 0 : (__mmask32{1} << left) - 1;
  return _mm512_maskz_loadu_epi16(mask, m + r * stride + c);
}

inline void turn(__m512i* x) {  // 16 x 16 words
  F y[16];
  PELLUCID_UNROLL for (int i = 0; i < 16; ++i) y[i] = (F)x[i];
  transpose(y);
  PELLUCID_UNROLL for (int i = 0; i < 16; ++i) x[i] = (__m512i)y[i];
}

inline void put(uint8_t* tile, const __m512i* x) {
  PELLUCID_UNROLL for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + 64 * i, x[i]);
}

// Tiles (16 rows) x (32 columns): tile number r / 16 * n_c + c / 32. Either of `rows` and `turned` may be null.
void lay_rows(const Bf16* m, int64_t stride, int64_t n_rows, int64_t n_columns, int64_t R, int64_t C, uint8_t* rows, uint8_t* turned) {
  for (int64_t r = 0; r < R; r += 16)
    for (int64_t c = 0; c < C; c += 32) {
      __m512i x[16];
      for (int i = 0; i < 16; ++i) x[i] = line(m, stride, r + i, c, n_rows, n_columns);
      if (rows) put(rows, x), rows += kTile;
      if (turned) turn(x), put(turned, x), turned += kTile;
    }
}

// Tiles (32 rows) x (16 columns): tile number r / 32 * n_c + c / 16. Either of `paired` and `columns` may be null.
void lay_pairs(const Bf16* m, int64_t stride, int64_t n_rows, int64_t n_columns, int64_t R, int64_t C, uint8_t* paired, uint8_t* columns) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int64_t r = 0; r < R; r += 32)
    for (int64_t c = 0; c < C; c += 32) {
      __m512i x[2][16];
      for (int i = 0; i < 16; ++i) {
        const __m512i a = line(m, stride, r + 2 * i, c, n_rows, n_columns), b = line(m, stride, r + 2 * i + 1, c, n_rows, n_columns);
        x[0][i] = _mm512_permutex2var_epi16(a, low, b), x[1][i] = _mm512_permutex2var_epi16(a, high, b);
      }
      for (auto& half : x) {
        if (paired) put(paired, half), paired += kTile;
        if (columns) turn(half), put(columns, half), columns += kTile;
      }
    }
}

inline __m256i rounded(F x) { return (__m256i)_mm512_cvtneps_pbh((__m512)x); }

// Columns of sums (n_columns, n_rows) become rows of numbers: out[r * stride + c], each times factor's lane r.
void turn_out(const float* sums, int64_t sums_stride, int64_t n_rows, int64_t n_columns, const float* factor, Bf16* out, int64_t stride) {
  for (int64_t r = 0; r < n_rows; r += 16) {
    const F by = factor ? load(factor + r) : all(1.0f);
    for (int64_t c = 0; c < n_columns; c += 16) {
      F x[16];
      PELLUCID_UNROLL for (int i = 0; i < 16; ++i) x[i] = load(sums + (c + i) * sums_stride + r) * by;
      transpose(x);
      const __mmask16 mask = n_columns - c >= 16 ? 0xFFFF : (1u << (n_columns - c)) - 1;
      for (int i = 0; i < 16 && r + i < n_rows; ++i) _mm256_mask_storeu_epi16(out + (r + i) * stride + c, mask, rounded(x[i]));
    }
  }
}

void round_out(const float* sums, int64_t sums_stride, int64_t n_rows, int64_t n_columns, Bf16* out, int64_t stride) {
  for (int64_t r = 0; r < n_rows; ++r)
    for (int64_t c = 0; c < n_columns; c += 16) {
      const __mmask16 mask = n_columns - c >= 16 ? 0xFFFF : (1u << (n_columns - c)) - 1;
      _mm256_mask_storeu_epi16(out + r * stride + c, mask, rounded(load(sums + r * sums_stride + c)));
    }
}

// Which of 16 queries from t see key s.
struct Sight {
  int64_t window;
  bool all_of(int64_t s, int64_t t) const { return s <= t && (!window || t + 15 - s < window); }
  I of(int64_t s, int64_t t) const {
    const I ahead = iota() + static_cast<int32_t>(t - s);
    return window ? (ahead >= 0) & (ahead < static_cast<int32_t>(std::min<int64_t>(window, INT32_MAX))) : ahead >= 0;
  }
  int64_t first(int64_t t) const { return window ? std::max<int64_t>(0, t - window + 1) : 0; }
};

// Two rows of 16 numbers as bfloat16: pairs of the two, as a second factor has them.
inline __m512i paired(F even, F odd) {
  const __m512i index = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(index, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
}

struct Room {  // pieces of the scratch, one after another
  uint8_t* at;
  uint8_t* bytes(int64_t n) { return at += up_to(n, 64), at - up_to(n, 64); }
  float* floats(int64_t n) { return reinterpret_cast<float*>(bytes(4 * n)); }
};

int64_t scratch_bytes(const AttendLearn& how, int64_t T, bool back) {
  const int64_t C = up_to(how.C, 32), V = up_to(how.V, 32), S = up_to(T, 64), laid = 2 * S;
  if (!back) return laid * (C + V) + 2 * kAsked * C + 4 * kAsked * (kSeen + V) + 2 * kAsked * kSeen + 4 * 3 * kAsked + 4096;
  return laid * (2 * C + V) + 4 * S * (C + V) + kQueries * 4 * (C + V) + kQueries * (8 * kKeys + 6 * kKeys + 4 * C) + 4 * 2 * kQueries + 4096;
}

// The keys [s, s + n) of a block of 32 queries: probabilities in pairs of keys, their sums and largest scores brought up to date.
// sums: (V, 32), what was summed before, is lowered where a larger score was found.
void soften(const AttendLearn& how, const Sight& sight, float* scores, int64_t s, int64_t n, int64_t t, float* most, float* shares, float* sums, int64_t V,
            bool fresh, uint8_t* laid) {
  for (int64_t j = 0; j < kAsked; j += 16) {
    float* of = scores + j;
    F top = load(most + j);
    const F before = top;
    for (int64_t i = 0; i < n; ++i) {
      F x = load(of + i * kAsked);
      if (!sight.all_of(s + i, t + j)) x = sight.of(s + i, t + j) ? x : all(-INFINITY), store(of + i * kAsked, x);
      top = larger(top, x * how.scale);
    }
    F share{};
    if (!fresh) {
      const F less = exp(before - top);
      share = load(shares + j) * less;
      for (int64_t c = 0; c < V; ++c) store(sums + c * kAsked + j, load(sums + c * kAsked + j) * less);
    }
    uint8_t* to = laid + j / 16 * kTile;
    for (int64_t i = 0; i < n; i += 2) {
      const F a = exp(fma(load(of + i * kAsked), how.scale, -top)), b = exp(fma(load(of + (i + 1) * kAsked), how.scale, -top));
      share += a, share += b;
      _mm512_store_si512(to + i / 32 * 2 * kTile + i % 32 / 2 * 64, paired(a, b));
    }
    store(most + j, top), store(shares + j, share);
  }
}

void forward(const AttendLearn& how, int64_t first, int64_t T, int64_t head, int64_t part, int64_t n_parts, uint8_t* scratch) {
  const Config config;
  _tile_loadconfig(&config);
  const int64_t C = up_to(how.C, 32), V = up_to(how.V, 32), S = up_to(T, 32), G = how.H / how.K;
  const Sight sight{how.window};
  Room room{scratch};
  uint8_t *keys = room.bytes(2 * S * C), *values = room.bytes(2 * S * V), *asked = room.bytes(2 * kAsked * C), *laid = room.bytes(2 * kAsked * kSeen);
  float *scores = room.floats(kAsked * kSeen), *sums = room.floats(kAsked * V), *most = room.floats(kAsked), *shares = room.floats(kAsked);
  lay_rows(how.k + (first * how.K + head) * how.C, how.K * how.C, T, how.C, S, C, keys, nullptr);
  lay_pairs(how.v + (first * how.K + head) * how.V, how.K * how.V, T, how.V, S, V, nullptr, values);
  for (int64_t h = head * G; h < head * G + G; ++h)
    for (int64_t t = part * kAsked; t < T; t += n_parts * kAsked) {
      const int64_t n_asked = std::min(kAsked, T - t);
      lay_rows(how.q + ((first + t) * how.H + h) * how.C, how.H * how.C, n_asked, how.C, kAsked, C, nullptr, asked);
      for (int64_t i = 0; i < kAsked; ++i) most[i] = -INFINITY;
      const int64_t begin = sight.first(t) / 32 * 32, end = std::min(S, t + kAsked);
      for (int64_t s = begin; s < end; s += kSeen) {
        const int64_t n = std::min(kSeen, end - s);
        products<false>({keys + s / 16 * (C / 32) * kTile, C / 32 * kTile, kTile}, {asked, C / 32 * kTile, kTile}, n, kAsked, C / 32, scores, kAsked);
        soften(how, sight, scores, s, n, t, most, shares, sums, V, s == begin, laid);
        const Factor a{values + s / 32 * (V / 16) * kTile, kTile, V / 16 * kTile}, b{laid, kTile, 2 * kTile};
        s == begin ? products<false>(a, b, V, kAsked, n / 32, sums, kAsked) : products<true>(a, b, V, kAsked, n / 32, sums, kAsked);
      }
      for (int64_t i = 0; i < n_asked; ++i) how.log_sums[(first + t + i) * how.H + h] = most[i] + std::log(shares[i]);
      for (int64_t i = 0; i < kAsked; ++i) shares[i] = 1.0f / shares[i];
      turn_out(sums, kAsked, n_asked, how.V, shares, how.out + ((first + t) * how.H + h) * how.V, how.H * how.V);
    }
  _tile_release();
}

// A block of scores and of the probabilities' gradients, keys as rows -> in tiles: probabilities (as a first factor), and the scores' gradients (as a first
// and as a second one).
void soften_back(const AttendLearn& how, const Sight& sight, const float* scores, const float* by_shares, int64_t s, int64_t t, const float* log_sums,
                 const float* along, uint8_t* shares_laid, uint8_t* by_laid, uint8_t* by_pairs) {
  for (int64_t j = 0; j < kQueries; j += 16) {
    const F log_sum = load(log_sums + j), less = load(along + j);
    for (int64_t i = 0; i < kKeys; i += 2) {
      F p[2], d[2];
      PELLUCID_UNROLL for (int o = 0; o < 2; ++o) {
        const int64_t at = (i + o) * kQueries + j;
        p[o] = exp(fma(load(scores + at), how.scale, -log_sum));
        if (!sight.all_of(s + i + o, t + j)) p[o] = sight.of(s + i + o, t + j) ? p[o] : F{};
        d[o] = p[o] * (load(by_shares + at) - less) * how.scale;
        const int64_t place = ((i + o) / 16 * 2 + j / 32) * kTile + (i + o) % 16 * 64 + j % 32 * 2;
        _mm256_store_si256(reinterpret_cast<__m256i*>(shares_laid + place), rounded(p[o]));
        _mm256_store_si256(reinterpret_cast<__m256i*>(by_laid + place), rounded(d[o]));
      }
      _mm512_store_si512(by_pairs + (i / 32 * 4 + j / 16) * kTile + i % 32 / 2 * 64, paired(d[0], d[1]));
    }
  }
}

void back(const AttendLearn& how, int64_t first, int64_t T, int64_t head, uint8_t* scratch) {
  const Config config;
  _tile_loadconfig(&config);
  const int64_t C = up_to(how.C, 32), V = up_to(how.V, 32), S = up_to(T, 64), G = how.H / how.K, nC = C / 32, nV = V / 32;
  const Sight sight{how.window};
  Room room{scratch};
  uint8_t *keys = room.bytes(2 * S * C), *key_columns = room.bytes(2 * S * C), *values = room.bytes(2 * S * V);
  float *by_k = room.floats(S * C), *by_v = room.floats(S * V);
  uint8_t *q_turned = room.bytes(2 * kQueries * C), *q_pairs = room.bytes(2 * kQueries * C);
  uint8_t *by_turned = room.bytes(2 * kQueries * V), *by_out_pairs = room.bytes(2 * kQueries * V);
  uint8_t *shares = room.bytes(2 * kKeys * kQueries), *by_scores = room.bytes(2 * kKeys * kQueries), *by_pairs = room.bytes(2 * kKeys * kQueries);
  float *scores = room.floats(kKeys * kQueries), *by_shares = room.floats(kKeys * kQueries), *by_q = room.floats(kQueries * C);
  float *log_sums = room.floats(kQueries), *along = room.floats(kQueries);
  const Bf16 *k = how.k + (first * how.K + head) * how.C, *v = how.v + (first * how.K + head) * how.V;
  lay_rows(k, how.K * how.C, T, how.C, S, C, keys, nullptr);
  lay_pairs(k, how.K * how.C, T, how.C, S, C, nullptr, key_columns);
  lay_rows(v, how.K * how.V, T, how.V, S, V, values, nullptr);
  std::fill(by_k, by_k + S * C, 0.0f), std::fill(by_v, by_v + S * V, 0.0f);
  for (int64_t h = head * G; h < head * G + G; ++h)
    for (int64_t t = 0; t < T; t += kQueries) {
      const int64_t n = std::min(kQueries, T - t), at = (first + t) * how.H + h;
      const Bf16 *q = how.q + at * how.C, *by_out = how.by_out + at * how.V, *out = how.out + at * how.V;
      lay_rows(q, how.H * how.C, n, how.C, kQueries, C, nullptr, q_turned);
      lay_pairs(q, how.H * how.C, n, how.C, kQueries, C, q_pairs, nullptr);
      lay_rows(by_out, how.H * how.V, n, how.V, kQueries, V, nullptr, by_turned);
      lay_pairs(by_out, how.H * how.V, n, how.V, kQueries, V, by_out_pairs, nullptr);
      for (int64_t i = 0; i < kQueries; ++i) {
        F sums{};
        for (int64_t c = 0; i < n && c < how.V; c += 16) {
          const int64_t place = i * how.H * how.V + c;
          const __mmask16 mask = how.V - c >= 16 ? 0xFFFF : (1u << (how.V - c)) - 1;
          const auto wide16 = [&](const Bf16* p) { return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16); };
          sums = fma(wide16(out + place), wide16(by_out + place), sums);
        }
        along[i] = sum(sums);
        log_sums[i] = i < n ? how.log_sums[at + i * how.H] : INFINITY;  // of no query: its probabilities are 0
      }
      std::fill(by_q, by_q + kQueries * C, 0.0f);
      for (int64_t s = sight.first(t) / kKeys * kKeys; s < t + n; s += kKeys) {
        products<false>({keys + s / 16 * nC * kTile, nC * kTile, kTile}, {q_turned, nC * kTile, kTile}, kKeys, kQueries, nC, scores, kQueries);
        products<false>({values + s / 16 * nV * kTile, nV * kTile, kTile}, {by_turned, nV * kTile, kTile}, kKeys, kQueries, nV, by_shares, kQueries);
        soften_back(how, sight, scores, by_shares, s, t, log_sums, along, shares, by_scores, by_pairs);
        products<true>({shares, 2 * kTile, kTile}, {by_out_pairs, kTile, 2 * nV * kTile}, kKeys, V, kQueries / 32, by_v + s * V, V);
        products<true>({by_scores, 2 * kTile, kTile}, {q_pairs, kTile, 2 * nC * kTile}, kKeys, C, kQueries / 32, by_k + s * C, C);
        products<true>({key_columns + s / 32 * 2 * nC * kTile, kTile, 2 * nC * kTile}, {by_pairs, kTile, 4 * kTile}, C, kQueries, kKeys / 32, by_q, kQueries);
      }
      turn_out(by_q, kQueries, n, how.C, nullptr, how.by_q + at * how.C, how.H * how.C);
    }
  round_out(by_k, C, T, how.C, how.by_k + (first * how.K + head) * how.C, how.K * how.C);
  round_out(by_v, V, T, how.V, how.by_v + (first * how.K + head) * how.V, how.K * how.V);
  _tile_release();
}

}  // namespace

extern const AttendTiles kAttendAmx;
const AttendTiles kAttendAmx{scratch_bytes, forward, back};

}  // namespace pellucid
