// AMX-BF16: 16 rows of weights times 16 of activations over 32 columns in one instruction.
#include <immintrin.h>

#include "lanes.h"
#include "tiled.h"

namespace pellucid {
namespace {

constexpr int64_t kNear = 1 << 20;  // bytes of rows of x that are multiplied with one weight after another: half of a core's second cache
constexpr int64_t kFew = 32;  // rows of x that weights are multiplied with where they lie
constexpr int64_t kSums = kTileRows * 16;  // floats of a tile of sums

// Eight tiles of 16 rows of 64 bytes: https://www.intel.com/content/www/us/en/docs/intrinsics-guide, LDTILECFG
struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// 16 rows of weights, where their tiles are: `step` bytes from one to the next.
struct Weights {
  const uint8_t* first;
  int64_t stride, step;

  Weights from(int64_t tile) const { return {first + tile * step, stride, step}; }
};

// n tiles of n_f times 16 rows of weights times those of n_t groups of x, which are x_group bytes apart: into the sums in the tiles 2 f + t.
template <int n_f, int n_t>
inline void add_up(const Weights& w0, const Weights& w1, int64_t n, const uint8_t* x, int64_t x_group) {
  for (int64_t b = 0; b < n; ++b, x += kTileBytes) {
    _tile_loadd(4, w0.first + b * w0.step, w0.stride);
    _tile_loadd(6, x, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (n_f == 2) {
      _tile_loadd(5, w1.first + b * w0.step, w0.stride);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (n_t == 2) {
      _tile_loadd(7, x + x_group, 64);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (n_f == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
}

template <int n_f, int n_t>
inline void clear() {
  _tile_zero(0);
  if constexpr (n_t == 2) _tile_zero(1);
  if constexpr (n_f == 2) _tile_zero(2);
  if constexpr (n_f == 2 && n_t == 2) _tile_zero(3);
}

template <int n_f, int n_t>
inline void keep(float* sums) {
  _tile_stored(0, sums, 64);
  if constexpr (n_t == 2) _tile_stored(1, sums + kSums, 64);
  if constexpr (n_f == 2) _tile_stored(2, sums + 2 * kSums, 64);
  if constexpr (n_f == 2 && n_t == 2) _tile_stored(3, sums + 3 * kSums, 64);
}

// A tile of sums, whose rows are n_f weights' and columns n rows of x: turned around.
void give(const float* sums, int64_t n_f, int64_t n, float* out, int64_t out_stride) {
  if (n < 4) {
    for (int64_t t = 0; t < n; ++t)
      for (int64_t f = 0; f < n_f; ++f) out[t * out_stride + f] = sums[f * 16 + t];
    return;
  }
  F x[16];
  PELLUCID_UNROLL for (int f = 0; f < 16; ++f) x[f] = load(sums + f * 16);
  transpose(x);
  if (n == 16 && n_f == 16) {
    PELLUCID_UNROLL for (int t = 0; t < 16; ++t) store(out + t * out_stride, x[t]);
    return;
  }
  for (int64_t t = 0; t < n; ++t) __builtin_memcpy(out + t * out_stride, &x[t], n_f * sizeof(float));
}

// Tiles [first, last) of rows of weights, with zeros past the last row and column.
void lay_out(const Bf16* w, int64_t D, int64_t n_rows, int64_t first, int64_t last, uint8_t* out) {
  for (int64_t f = 0; f < row_tiles(n_rows) * kTileRows; ++f) {
    uint8_t* to = out + f / kTileRows * (last - first) * kTileBytes + f % kTileRows * 64;
    for (int64_t b = first; b < last; ++b, to += kTileBytes) {
      const int64_t left = D - b * kTileColumns;
      const __mmask32 mask = f >= n_rows ? 0 : left >= kTileColumns ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
      _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask, w + f * D + b * kTileColumns));
    }
  }
}

// Up to 32 rows of weights times as many of x. `last`: where the weights' last tile is, if the columns end inside of it.
template <int n_f, int n_t>
void block(const Weights* w, const Weights* last, int64_t D, const uint8_t* x, int64_t n_rows, int64_t n, float* out, int64_t out_stride, float* sums) {
  const int64_t N = tiles(D), whole = last ? N - 1 : N;
  clear<n_f, n_t>();
  add_up<n_f, n_t>(w[0], w[n_f - 1], whole, x, N * kTileBytes);
  if (last) add_up<n_f, n_t>(last[0], last[n_f - 1], 1, x + whole * kTileBytes, N * kTileBytes);
  keep<n_f, n_t>(sums);
  for (int f = 0; f < n_f; ++f)
    for (int t = 0; t < n_t; ++t)
      give(sums + (2 * f + t) * kSums, n_rows - 16 * f < 16 ? n_rows - 16 * f : 16, n - 16 * t < 16 ? n - 16 * t : 16, out + 16 * t * out_stride + 16 * f, out_stride);
}

void multiply(const Bf16* w, int64_t D, int64_t first, int64_t last, const uint8_t* x, int64_t n, float* out, int64_t out_stride, uint8_t* scratch) {
  const Config config;
  _tile_loadconfig(&config);
  const int64_t N = tiles(D), whole = D / kTileColumns, near = kNear / (N * kTileBytes) / 2 * 32, at_once = near < 32 ? 32 : near;
  auto* sums = reinterpret_cast<float*>(scratch);
  uint8_t* laid = scratch + 4 * kTileBytes;
  for (int64_t begin = 0; begin < n; begin += at_once) {
    const int64_t end = begin + at_once < n ? begin + at_once : n;
    for (int64_t f = first; f < last; f += 32) {
      const int64_t n_rows = last - f < 32 ? last - f : 32;
      // For few rows of x weights are read from where they lie, but for the last rows there are, or the last columns. Files put them between lines
      // of a cache, and every such row of a tile is two lines: for many rows they are laid out first.
      const bool many = n_rows % 16 || end - begin > kFew;
      const int64_t from = many ? 0 : whole;
      if (from < N) lay_out(w + f * D, D, n_rows, from, N, laid);
      const Weights there[2] = {{laid, 64, kTileBytes}, {laid + (N - from) * kTileBytes, 64, kTileBytes}};
      const auto* rows = reinterpret_cast<const uint8_t*>(w + f * D);
      const Weights lie[2] = {{rows, 2 * D, 64}, {rows + 32 * D, 2 * D, 64}};
      for (int64_t t = begin; t < end; t += 32) {
        const auto go = n_rows > 16 ? (end - t > 16 ? block<2, 2> : block<2, 1>) : end - t > 16 ? block<1, 2> : block<1, 1>;
        go(many ? there : lie, many || whole == N ? nullptr : there, D, x + t / kTileRows * N * kTileBytes, n_rows, end - t,
           out + t * out_stride + f, out_stride, sums);
      }
    }
  }
  _tile_release();
}

// 16 numbers as bfloat16 in the low halves: rounded to the nearest, ties to even; what is no number stays none.
inline __m256i narrowed(F x) {
  const U bits = (U)x, rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16, nan = bits >> 16 | 0x40u;
  return _mm512_cvtepi32_epi16((__m512i)(x == x ? rounded : nan));
}

void pack(const float* x, int64_t x_stride, int n, int64_t D, int64_t first, int64_t last, uint8_t* out) {
  for (int64_t b = first; b < last; ++b, out += kTileBytes) {
    F pairs[16] = {};
    for (int t = 0; t < n; ++t) {
      const float* from = x + t * x_stride + b * kTileColumns;
      float rest[kTileColumns] = {};
      if (D - b * kTileColumns < kTileColumns) {
        __builtin_memcpy(rest, from, (D - b * kTileColumns) * sizeof(float));
        from = rest;
      }
      pairs[t] = (F)_mm512_inserti64x4(_mm512_castsi256_si512(narrowed(load(from))), narrowed(load(from + 16)), 1);
    }
    transpose(pairs);
    for (int i = 0; i < 16; ++i) _mm512_store_si512(out + 64 * i, (__m512i)pairs[i]);
  }
}

}  // namespace

extern const Tiled kTiledAmx;
const Tiled kTiledAmx{pack, multiply};

}  // namespace pellucid
