// AVX-512 with AMX's tiles: 16 rows of activations times a panel's 32 columns in one instruction, where there are as many rows. Panels are unpacked to
// bytes once for all of them. What is added up in floating point is the same as without, in the same order.
#include "avx512.h"

namespace pellucid {
namespace {

using F = Avx512::F;
using I = Avx512::I;
using U = Avx512::U;

// Eight tiles: of each its rows and their bytes. https://www.intel.com/content/www/us/en/docs/intrinsics-guide, LDTILECFG
struct alignas(64) Tiles {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Two sets of three tiles, used in turn: activations (16 rows), codes (4 columns of the panel's 16 rows in each row), and their products.
template <int kGroup>
void configure() {
  Tiles tiles;
  for (int i = 0; i < 6; i += 3) {
    tiles.rows[i] = kRows, tiles.bytes[i] = kGroup;
    tiles.rows[i + 1] = kGroup / 4, tiles.bytes[i + 1] = kLine;
    tiles.rows[i + 2] = kRows, tiles.bytes[i + 2] = kLine;
  }
  _tile_loadconfig(&tiles);
}

template <int kFormat>
struct Unpacked {  // 32 columns of a panel
  static constexpr Layout L = kLayouts[kFormat];
  int8_t codes[kPanel * kColumns];
  F scales[L.n_groups()], minima[L.minimum ? L.n_groups() : 1];
};

template <int kFormat>
void unpack_panel(const uint8_t* panel, int64_t n_columns, Unpacked<kFormat>* out) {
  constexpr Layout L = kLayouts[kFormat];
  for (int64_t block = 0; block < n_columns / L.block; ++block) {
    const Heads<Avx512, kFormat> heads(panel, 0);
    panel += L.head_bytes();
    for (int i = 0; i < L.block / kColumns; ++i, panel += L.part_bytes(), ++out) {
      for (int g = 0; g < L.n_groups(); ++g) {
        out->scales[g] = heads.scale_of(panel, 0, g);
        if constexpr (L.minimum) out->minima[g] = heads.minimum_of(panel, 0, g);
      }
      U quads[8];
      read_codes<Avx512, kFormat>(panel + L.code_bytes(), quads);
      for (int j = 0; j < 8; ++j) {
        const __m512i less = _mm512_sub_epi8((__m512i)quads[j], _mm512_set1_epi8(static_cast<char>(L.offset)));
        _mm512_store_si512(out->codes + kLine * j, less);
      }
    }
  }
}

struct alignas(64) Dots {
  I rows[kRows];
};

// The dot products of a block's columns, or of its halves: `dots` has one or two.
template <int kFormat>
void multiply_block(const uint8_t* x, const int8_t* codes, Dots* dots) {
  constexpr int kGroup = kLayouts[kFormat].group;
  _tile_zero(2);
  _tile_loadd(0, x, kColumns);
  _tile_loadd(1, codes, kLine);
  _tile_dpbssd(2, 0, 1);
  _tile_stored(2, dots, kLine);
  if constexpr (kGroup < kColumns) {
    _tile_zero(5);
    _tile_loadd(3, x + kGroup, kColumns);
    _tile_loadd(4, codes + kPanel * kGroup, kLine);
    _tile_dpbssd(5, 3, 4);
    _tile_stored(5, dots + 1, kLine);
  }
}

// 16 rows times a panel.
template <int kFormat>
void multiply_group(const Unpacked<kFormat>* w, int64_t n_blocks, const uint8_t* x, float* out, int64_t out_stride) {
  constexpr Layout L = kLayouts[kFormat];
  Dots dots[2][L.n_groups()];
  F sum[kRows] = {};
  multiply_block<kFormat>(x, w->codes, dots[0]);
  for (int64_t b = 0; b < n_blocks; ++b, ++w, x += kRows * kRowBytes) {
    if (b + 1 < n_blocks) multiply_block<kFormat>(x + kRows * kRowBytes, w[1].codes, dots[(b + 1) % 2]);  // while this block's are added up
    const Dots* done = dots[b % 2];
    const uint8_t* facts = x + kRows * kColumns;
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const float scale_x = Avx512::read<float>(facts + 4 * m);
      if constexpr (L.group == kColumns) {
        sum[m] = add_block<Avx512, kFormat>(sum[m], done->rows[m], w->scales, w->minima, scale_x, Avx512::read<float>(facts + 4 * (3 * kRows + m)));
      } else {
        sum[m] = add_halves<Avx512, kFormat>(sum[m], done[0].rows[m], done[1].rows[m], w->scales, w->minima, scale_x,
                                             Avx512::read<int>(facts + 4 * (kRows + m)), Avx512::read<int>(facts + 4 * (2 * kRows + m)));
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) __builtin_memcpy(out + m * out_stride, &sum[m], sizeof sum[m]);
}

template <int kFormat>
void multiply_many(const uint8_t* panels, int64_t n_columns, int64_t first, int64_t last, const uint8_t* x, int64_t n_groups, float* out,
                   int64_t out_stride, uint8_t* scratch) {
  constexpr Layout L = kLayouts[kFormat];
  static_assert(sizeof(Unpacked<kFormat>) <= many_bytes(1, kColumns));
  const int64_t n_blocks = n_columns / kColumns, panel_bytes = n_columns / L.block * L.panel_bytes();
  auto* unpacked = reinterpret_cast<Unpacked<kFormat>*>(scratch);
  for (int64_t i = first; i < last; ++i) unpack_panel<kFormat>(panels + i * panel_bytes, n_columns, unpacked + (i - first) * n_blocks);
  configure<L.group>();
  for (int64_t g = 0; g < n_groups; ++g, x += n_blocks * kRows * kRowBytes, out += kRows * out_stride)
    for (int64_t i = first; i < last; ++i) multiply_group<kFormat>(unpacked + (i - first) * n_blocks, n_blocks, x, out + kPanel * i, out_stride);
  _tile_release();
}

template <int kFormat = 0>
constexpr void fill_many(Variant& variant) {
  variant.multiply_many[kFormat] = multiply_many<kFormat>;
  if constexpr (kFormat + 1 < kFormats) fill_many<kFormat + 1>(variant);
}

constexpr Variant with_tiles() {
  Variant variant = make<Avx512>("avx512-amx");
  fill_many(variant);
  return variant;
}

}  // namespace

extern const Variant kAmx;
constexpr Variant kAmx = with_tiles();

}  // namespace pellucid
