// The products, written once over a small set of vector operations V: see variant_*.cpp.
//
// V has kLanes lanes of 4 bytes in vectors F (float), I (int32) and U (uint32), and kTile, how many rows it multiplies at a time; kSigned, whether
// its product of bytes wants the first factor signed. The order of floating point operations of one row and one number of the result is the
// same in every tile, so rows do not depend on each other's company.
#pragma once
#include "variant.h"

namespace pellucid {
namespace {

template <class V>
typename V::U load(const uint8_t* p) {
  typename V::U out;
  __builtin_memcpy(&out, p, sizeof out);
  return out;
}

template <class V>
typename V::U raised(typename V::U line, int n_bits) {
  return n_bits < 0 ? line >> -n_bits : line << n_bits;
}

// The eight quads of a block of 32 columns, this part's rows of the panel: 4 codes of a row in each lane.
template <class V, int kFormat>
void read_codes(const uint8_t* lines, typename V::U (&quads)[8]) {
  constexpr Layout L = kLayouts[kFormat];
  using U = typename V::U;
  if constexpr (L.bits == 8) {
    for (int j = 0; j < 8; ++j) quads[j] = load<V>(lines + kLine * j);
  } else if constexpr (L.bits == 4) {
    for (int j = 0; j < 4; ++j) {
      const U line = load<V>(lines + kLine * j);
      quads[j] = line & 0x0f0f0f0fu;
      quads[j + 4] = line >> 4 & 0x0f0f0f0fu;
    }
  } else {
    for (int i = 0; i < 2; ++i) {
      const U line = load<V>(lines + kLine * i);
      for (int j = 0; j < 4; ++j) quads[4 * i + j] = line >> 2 * j & 0x03030303u;
    }
  }
  const uint8_t* high = lines + L.line_bytes();
  if constexpr (L.high_bits == 1) {
    const U line = load<V>(high);
    for (int j = 0; j < 8; ++j) quads[j] |= raised<V>(line, L.bits - j) & 0x01010101u << L.bits;
  } else if constexpr (L.high_bits == 2) {
    for (int j = 0; j < 8; ++j) {
      const U line = load<V>(high + kLine * (j / 4));
      quads[j] |= raised<V>(line, L.bits - 2 * (j % 4)) & 0x03030303u << L.bits;
    }
  }
  if constexpr (L.table != Table::none)
    for (int j = 0; j < 8; ++j) quads[j] = V::look_up(quads[j], L.table == Table::iq4 ? kIq4 : kE2m1);
}

// A block's scales and minima of its columns' groups, for one part of the panel; `head` is the block's, `codes` the 32 columns'.
template <class V, int kFormat>
struct Heads {
  using F = typename V::F;
  static constexpr Layout L = kLayouts[kFormat];
  F scale, minimum;

  Heads(const uint8_t* head, int lane) : scale{}, minimum{} {
    if constexpr (L.scale == Scale::exponent) scale = V::exponents(head + lane);
    else scale = V::halves(head + 2 * lane);
    if constexpr (L.minimum) minimum = V::halves(head + 2 * kPanel + 2 * lane);
  }
  F scale_of(const uint8_t* codes, int lane, int g) const { return L.scale == Scale::codes ? V::bytes(codes + kPanel * g + lane) * scale : scale; }
  F minimum_of(const uint8_t* codes, int lane, int g) const {
    return L.scale == Scale::codes ? V::bytes(codes + kPanel * (L.n_groups() + g) + lane) * minimum : minimum;
  }
};

// What a block of 32 columns adds to a sum: its dot product where one scale spans it, those of its halves where not. less: minus the sum of the row's
// whole numbers, less_first: of the first half; shift: scale_x times less.
template <class V, int kFormat>
typename V::F add_block(typename V::F sum, typename V::I dot, const typename V::F* scales, const typename V::F* minima, float scale_x, float shift) {
  sum = V::fma(V::to_float(dot) * scales[0], V::splat(scale_x), sum);
  if constexpr (kLayouts[kFormat].minimum) sum = V::fma(minima[0], V::splat(shift), sum);
  return sum;
}
template <class V, int kFormat>
typename V::F add_halves(typename V::F sum, typename V::I first, typename V::I second, const typename V::F* scales, const typename V::F* minima,
                         float scale_x, int less, int less_first) {
  typename V::F both = V::fma(V::to_float(second), scales[1], V::to_float(first) * scales[0]);
  if constexpr (kLayouts[kFormat].minimum) {
    both = V::fma(minima[0], V::splat(static_cast<float>(less_first)), both);
    both = V::fma(minima[1], V::splat(static_cast<float>(less - less_first)), both);
  }
  return V::fma(both, V::splat(scale_x), sum);
}

constexpr int kAhead = 2048;  // bytes of a panel that are asked for in advance: else what is computed and what is read take turns

// M rows of activations times one part of a panel.
template <class V, int kFormat, int M>
void tile(const uint8_t* panel, int part, int64_t n_columns, const uint8_t* x, int n, int row, float* out, int64_t out_stride) {
  constexpr Layout L = kLayouts[kFormat];
  using F = typename V::F;
  using I = typename V::I;
  using U = typename V::U;
  constexpr bool kWide = L.offset >= 128;  // codes of more than 7 bits
  constexpr bool kShift = !(kWide && V::kSigned);  // the codes' offset is taken off by the sum of the activations
  const int lane = part * V::kLanes;  // the part's first row of the panel
  F sum[M] = {};
  for (int64_t block = 0; block < n_columns / L.block; ++block) {
    const Heads<V, kFormat> heads(panel, lane);
    panel += L.head_bytes();
    for (int i = 0; i < L.block / kColumns; ++i, panel += L.part_bytes(), x += n * kRowBytes) {
      F scales[L.n_groups()], minima[L.n_groups()];
      for (int g = 0; g < L.n_groups(); ++g) {
        scales[g] = heads.scale_of(panel, lane, g);
        if constexpr (L.minimum) minima[g] = heads.minimum_of(panel, lane, g);
      }
      if (part == 0)  // the other parts find it near
        for (int l = 0; l < L.panel_bytes() / (L.block / kColumns); l += kLine) __builtin_prefetch(panel + kAhead + l);
      U quads[8];
      read_codes<V, kFormat>(panel + L.code_bytes() + 4 * lane, quads);
      if constexpr (kWide && V::kSigned)
        for (U& quad : quads) quad ^= 0x80808080u;
      const uint8_t* facts = x + n * kColumns + 4 * row;
#pragma GCC unroll 16  // so that the sums are in registers and not in an array
      for (int m = 0; m < M; ++m) {
        const uint8_t* numbers = x + kColumns * (row + m);
        const float scale_x = V::template read<float>(facts + 4 * m);
        const int less = V::template read<int>(facts + 4 * (n + m));
        if constexpr (L.group == kColumns) {
          I dot = V::splat(kShift ? less : 0) * L.offset;
          for (int j = 0; j < 8; ++j) dot = V::template dot<kWide>(dot, quads[j], numbers + 4 * j);
          const float shift = L.minimum ? V::template read<float>(facts + 4 * (3 * n + m)) : 0.0f;
          sum[m] = add_block<V, kFormat>(sum[m], dot, scales, minima, scale_x, shift);
        } else {
          const int less_first = V::template read<int>(facts + 4 * (2 * n + m));
          I first = V::splat(less_first) * L.offset, second = V::splat(less - less_first) * L.offset;
          for (int j = 0; j < 4; ++j) {
            first = V::template dot<kWide>(first, quads[j], numbers + 4 * j);
            second = V::template dot<kWide>(second, quads[j + 4], numbers + 16 + 4 * j);
          }
          sum[m] = add_halves<V, kFormat>(sum[m], first, second, scales, minima, scale_x, less, less_first);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) __builtin_memcpy(out + (row + m) * out_stride + lane, &sum[m], sizeof sum[m]);
}

template <class V, int kFormat, int M>
void tiles(const uint8_t* panel, int64_t n_columns, const uint8_t* x, int n, int& row, float* out, int64_t out_stride) {
  if constexpr (M <= V::kTile) {
    for (; n - row >= M; row += M)
      for (int part = 0; part < kPanel / V::kLanes; ++part) tile<V, kFormat, M>(panel, part, n_columns, x, n, row, out, out_stride);
  }
}

template <class V, int kFormat>
void multiply_panels(const uint8_t* panels, int64_t n_columns, int64_t first, int64_t last, const uint8_t* x, int n, float* out, int64_t out_stride) {
  constexpr Layout L = kLayouts[kFormat];
  const int64_t panel_bytes = n_columns / L.block * L.panel_bytes();
  for (int64_t i = first; i < last; ++i) {
    int row = 0;
    tiles<V, kFormat, 16>(panels + i * panel_bytes, n_columns, x, n, row, out + kPanel * i, out_stride);
    tiles<V, kFormat, 8>(panels + i * panel_bytes, n_columns, x, n, row, out + kPanel * i, out_stride);
    tiles<V, kFormat, 4>(panels + i * panel_bytes, n_columns, x, n, row, out + kPanel * i, out_stride);
    tiles<V, kFormat, 2>(panels + i * panel_bytes, n_columns, x, n, row, out + kPanel * i, out_stride);
    tiles<V, kFormat, 1>(panels + i * panel_bytes, n_columns, x, n, row, out + kPanel * i, out_stride);
  }
}

template <class V, int kFormat>
void measure_panels(const uint8_t* panels, int64_t n_columns, int64_t first, int64_t last, float* out) {
  constexpr Layout L = kLayouts[kFormat];
  const int64_t n_blocks = n_columns / L.block, panel_bytes = n_blocks * L.panel_bytes();
  for (int64_t i = first; i < last; ++i) {
    float most = 0.0f;
    for (int lane = 0; lane < kPanel; lane += V::kLanes) {
      const uint8_t* panel = panels + i * panel_bytes;
      typename V::F sum{};
      for (int64_t block = 0; block < n_blocks; ++block) {
        const Heads<V, kFormat> heads(panel, lane);
        panel += L.head_bytes();
        for (int part = 0; part < L.block / kColumns; ++part, panel += L.part_bytes()) {
          typename V::U quads[8];
          read_codes<V, kFormat>(panel + L.code_bytes() + 4 * lane, quads);
          for (int k = 0; k < kColumns; ++k) {
            const auto code = reinterpret_cast<typename V::I>(quads[k / 4] >> 8 * (k % 4) & 255u) - L.offset;
            typename V::F number = V::to_float(code) * heads.scale_of(panel, lane, k / L.group);
            if constexpr (L.minimum) number -= heads.minimum_of(panel, lane, k / L.group);
            sum = V::fma(number, number, sum);
          }
        }
      }
      for (int l = 0; l < V::kLanes; ++l) most = sum[l] > most ? sum[l] : most;
    }
    out[i - first] = __builtin_sqrtf(most);
  }
}

// What is smaller than this is nothing: its inverse might not be finite. Not finite numbers make the block's scale a NaN, and so the row's results.
constexpr float kLeast = 0x1p-100f;

template <class V>
void quantize_rows(const float* x, int n, int64_t n_columns, uint8_t* out) {
  for (int64_t block = 0; block < n_columns / kColumns; ++block, out += n * kRowBytes) {
    for (int m = 0; m < n; ++m) {
      const float* from = x + m * n_columns + block * kColumns;
      uint32_t bits[kColumns], largest = 0;
      __builtin_memcpy(bits, from, sizeof bits);
      for (uint32_t b : bits) largest = (b & 0x7fffffffu) > largest ? (b & 0x7fffffffu) : largest;  // numbers without a sign are in the order of their bits
      const bool finite = largest < 0x7f800000u;
      float most;
      __builtin_memcpy(&most, &largest, sizeof most);
      const float factor = finite && most >= kLeast ? 127.0f / most : 0.0f, scale = !finite ? __builtin_nanf("") : most >= kLeast ? most / 127.0f : 0.0f;
      int8_t numbers[kColumns] = {};
      if (finite)
        for (int k = 0; k < kColumns; ++k) numbers[k] = static_cast<int8_t>(static_cast<int>(__builtin_rintf(from[k] * factor)));
      int first = 0, second = 0;
      for (int k = 0; k < kColumns / 2; ++k) first -= numbers[k], second -= numbers[k + kColumns / 2];
      const int all = first + second;
      const float shift = scale * static_cast<float>(all);
      __builtin_memcpy(out + m * kColumns, numbers, sizeof numbers);
      uint8_t* facts = out + n * kColumns + 4 * m;
      __builtin_memcpy(facts, &scale, 4);
      __builtin_memcpy(facts + 4 * n, &all, 4);
      __builtin_memcpy(facts + 8 * n, &first, 4);
      __builtin_memcpy(facts + 12 * n, &shift, 4);
    }
  }
}

template <class V, int kFormat = 0>
constexpr void fill(Variant& variant) {
  variant.multiply[kFormat] = multiply_panels<V, kFormat>;
  variant.measure[kFormat] = measure_panels<V, kFormat>;
  if constexpr (kFormat + 1 < kFormats) fill<V, kFormat + 1>(variant);
}

template <class V>
constexpr Variant make(const char* name) {
  Variant variant{name, {}, quantize_rows<V>, {}, {}};
  fill<V>(variant);
  return variant;
}

// 2^(e - 128), half of what E8M0 means: the tables hold twice the values.
inline float half_power(uint8_t e) {
  const uint32_t bits = e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23;
  float out;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

}  // namespace
}  // namespace pellucid
