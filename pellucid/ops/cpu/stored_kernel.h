// Rows as files hold them -> float32: bit for bit what ops/unpack.py, ops/codebooks.py and ops/groups.py make of them, whose texts say what bytes mean.
#pragma once
#include "blocks.h"
#include "numbers.h"
#include "stored.h"

namespace pellucid {
namespace {

template <class T>
inline T word_at(const uint8_t* from) {
  T out;
  __builtin_memcpy(&out, from, sizeof out);
  return out;
}
inline float half_at(const uint8_t* from) { return wide(F16{word_at<uint16_t>(from)}); }

// A block that panels are made of too.
template <int kFormat>
void unpack_one(const uint8_t* from, const float*, float* out) {
  constexpr Layout L = kLayouts[kFormat];
  Block b;
  kRead[kFormat](from, b);
  // 2^(e - 128), half of what E8M0 means: the table holds twice the values.
  const float d = L.scale == Scale::exponent ? as_float(b.scale < 2 ? 0x00200000u << b.scale : (b.scale - 1u) << 23) : wide(F16{b.scale});
  const float m = L.minimum ? wide(F16{b.minimum}) : 0.0f;
  for (int g = 0; g < L.block / L.group; ++g) {
    const float scale = L.scale == Scale::codes ? d * b.scales[g] : d, least = L.scale == Scale::codes ? m * b.minima[g] : m;
    for (int k = g * L.group; k < (g + 1) * L.group; ++k) {
      const int value = (L.table == Table::none ? b.codes[k] : (L.table == Table::iq4 ? kIq4 : kE2m1)[b.codes[k]]) - L.offset;
      out[k] = L.minimum ? scale * static_cast<float>(value) - least : scale * static_cast<float>(value);
    }
  }
}

// N numbers of a grid's point times the scale; bit k of `signs` is set for minus.
template <int N>
inline void put(float scale, const float* point, unsigned signs, float* out) {
  for (int k = 0; k < N; ++k) out[k] = as_float(as_bits(scale * point[k]) ^ (signs >> k & 1) << 31);
}

// Eight signs of which seven are stored: minus signs come in even numbers.
inline unsigned even(unsigned seven) { return seven | (__builtin_popcount(seven) & 1u) << 7; }

void unpack_iq2_xxs(const uint8_t* b, const float* grid, float* out) {
  const float d = half_at(b);
  for (int i = 0; i < 8; ++i) {
    const uint8_t* index = b + 2 + 8 * i;
    const uint32_t w = word_at<uint32_t>(index + 4);
    const float scale = d * (0.5f + static_cast<float>(w >> 28)) * 0.25f;
    for (int j = 0; j < 4; ++j) put<8>(scale, grid + 8 * index[j], even(w >> 7 * j & 127), out + 32 * i + 8 * j);
  }
}

void unpack_iq2_xs(const uint8_t* b, const float* grid, float* out) {
  const float d = half_at(b);
  for (int k = 0; k < 32; ++k) {
    const uint16_t q = word_at<uint16_t>(b + 2 + 2 * k);
    const float scale = d * (0.5f + static_cast<float>(b[66 + k / 4] >> k / 2 % 2 * 4 & 15)) * 0.25f;
    put<8>(scale, grid + 8 * (q & 511), even(q >> 9), out + 8 * k);
  }
}

void unpack_iq2_s(const uint8_t* b, const float* grid, float* out) {
  const uint8_t *low = b + 2, *signs = b + 34, *high = b + 66, *scales = b + 74;
  const float d = half_at(b);
  for (int k = 0; k < 32; ++k) {
    const float scale = d * (0.5f + static_cast<float>(scales[k / 4] >> k / 2 % 2 * 4 & 15)) * 0.25f;
    put<8>(scale, grid + 8 * (low[k] | (high[k / 4] >> k % 4 * 2 & 3) << 8), signs[k], out + 8 * k);
  }
}

void unpack_iq3_xxs(const uint8_t* b, const float* grid, float* out) {
  const float d = half_at(b);
  for (int i = 0; i < 8; ++i) {
    const uint32_t w = word_at<uint32_t>(b + 66 + 4 * i);
    const float scale = d * (0.5f + static_cast<float>(w >> 28)) * 0.5f;
    for (int j = 0; j < 8; ++j) put<4>(scale, grid + 4 * b[2 + 8 * i + j], even(w >> 7 * (j / 2) & 127) >> j % 2 * 4, out + 32 * i + 4 * j);
  }
}

void unpack_iq3_s(const uint8_t* b, const float* grid, float* out) {
  const uint8_t *low = b + 2, *high = b + 66, *signs = b + 74, *scales = b + 106;
  const float d = half_at(b);
  for (int k = 0; k < 64; ++k) {
    const float scale = d * (1.0f + 2.0f * static_cast<float>(scales[k / 16] >> k / 8 % 2 * 4 & 15));
    put<4>(scale, grid + 4 * (low[k] | (high[k / 8] >> k % 8 & 1) << 8), signs[k / 2] >> k % 2 * 4, out + 4 * k);
  }
}

constexpr float kDelta = 0.125f;  // IQ1S_DELTA of ggml-common.h

inline void put_moved(float scale, const float* point, bool down, float* out) {
  for (int k = 0; k < 8; ++k) out[k] = scale * (point[k] + (down ? -kDelta : kDelta));
}

void unpack_iq1_s(const uint8_t* b, const float* grid, float* out) {
  const float d = half_at(b);
  for (int k = 0; k < 32; ++k) {
    const uint16_t w = word_at<uint16_t>(b + 34 + k / 4 * 2);
    put_moved(d * static_cast<float>(2 * (w >> 12 & 7) + 1), grid + 8 * (b[2 + k] | (w >> k % 4 * 3 & 7) << 8), w >> 15, out + 8 * k);
  }
}

void unpack_iq1_m(const uint8_t* b, const float* grid, float* out) {
  uint16_t w[4], tops = 0;  // the upper four bits of the words that hold the groups' scales make the block's, a float16
  for (int i = 0; i < 4; ++i) w[i] = word_at<uint16_t>(b + 48 + 2 * i), tops |= (w[i] >> 12) << 4 * i;
  const float d = wide(F16{tops});
  for (int k = 0; k < 32; ++k) {
    const int four = b[32 + k / 2] >> k % 2 * 4 & 15;
    put_moved(d * static_cast<float>(2 * (w[k / 8] >> k / 2 % 4 * 3 & 7) + 1), grid + 8 * (b[k] | (four & 7) << 8), four >> 3, out + 8 * k);
  }
}

// Digits of base three of n bytes, the highest of every byte first.
inline void thirds(const uint8_t* from, int n, int n_digits, float d, float*& out) {
  uint8_t power = 1;
  for (int p = 0; p < n_digits; ++p, power *= 3)
    for (int k = 0; k < n; ++k) *out++ = d * static_cast<float>((static_cast<uint8_t>(from[k] * power) * 3 >> 8) - 1);
}

void unpack_tq1_0(const uint8_t* b, const float*, float* out) {
  const float d = half_at(b + 52);
  thirds(b, 32, 5, d, out), thirds(b + 32, 16, 5, d, out), thirds(b + 48, 4, 4, d, out);
}

void unpack_tq2_0(const uint8_t* b, const float*, float* out) {
  const float d = half_at(b + 64);
  for (int h = 0; h < 2; ++h)
    for (int p = 0; p < 4; ++p)
      for (int k = 0; k < 32; ++k) *out++ = d * static_cast<float>((b[32 * h + k] >> 2 * p & 3) - 1);
}

// E4M3 without a sign, halved; 0x7F (a NaN) is read as zero.
inline float half_ue4m3(uint8_t byte) {
  const int exponent = byte >> 3 & 15, mantissa = byte & 7;
  if (byte == 0x7F) return 0.0f;
  return exponent ? static_cast<float>(8 + mantissa) * as_float((exponent - 11 + 127u) << 23) : static_cast<float>(mantissa) * 0x1p-10f;
}

void unpack_nvfp4(const uint8_t* b, const float*, float* out) {
  for (int g = 0; g < 4; ++g) {
    const float scale = half_ue4m3(b[g]);
    for (int k = 0; k < 16; ++k) *out++ = scale * static_cast<float>(kE2m1[b[4 + 8 * g + k % 8] >> k / 8 * 4 & 15] - 16);
  }
}

// A row in groups. Its last byte may hold more codes than there are columns: they go where the next row begins, which is written later, or past the last.
void unpack_group_row(const Stored& w, int64_t r, float* out) {
  const uint8_t* codes = w.data + r * w.row_bytes;
  const auto look_up = [&]<int kEach>() {
    for (int64_t i = 0; i < w.row_bytes; ++i) __builtin_memcpy(out + kEach * i, w.table + kEach * codes[i], kEach * sizeof(float));
  };
  if (w.each == 1) look_up.template operator()<1>();
  else if (w.each == 2) look_up.template operator()<2>();
  else look_up.template operator()<4>();
  const int64_t n_groups = (w.n_columns + w.group - 1) / w.group;
  for (int64_t g = 0; g < n_groups; ++g) {
    const float scale = w.scales[r * n_groups + g], zero = w.zeros ? w.zeros[r * n_groups + g] : w.zero;
    const int64_t end = (g + 1) * w.group < w.n_columns ? (g + 1) * w.group : w.n_columns;
    for (int64_t c = g * w.group; c < end; ++c) out[c] = (out[c] - zero) * scale;
  }
}

using UnpackOne = void (*)(const uint8_t* from, const float* table, float* out);
// In the order of kLayouts, and then of kCoded.
constexpr UnpackOne kUnpackOne[] = {unpack_one<0>, unpack_one<1>, unpack_one<2>, unpack_one<3>, unpack_one<4>, unpack_one<5>, unpack_one<6>,
                                    unpack_one<7>, unpack_one<8>, unpack_one<9>, unpack_one<10>, unpack_one<11>, unpack_one<12>,
                                    unpack_iq2_xxs, unpack_iq2_xs, unpack_iq2_s, unpack_iq3_xxs, unpack_iq3_s, unpack_iq1_s, unpack_iq1_m,
                                    unpack_tq1_0, unpack_tq2_0, unpack_nvfp4};
static_assert(sizeof kUnpackOne / sizeof *kUnpackOne == stored_as(Code::f32));

void unpack_rows(const Stored& w, int64_t first, int64_t last, float* out) {
  if (w.format == stored_as(Code::groups)) {
    for (int64_t r = first; r < last; ++r, out += w.n_columns) unpack_group_row(w, r, out);
    return;
  }
  const bool layout = w.format < kFormats;
  const int block = layout ? kLayouts[w.format].block : kCoded[w.format - kFormats].block;
  const int bytes = layout ? kLayouts[w.format].source_bytes : kCoded[w.format - kFormats].bytes;
  const UnpackOne unpack = kUnpackOne[w.format];
  for (int64_t r = first; r < last; ++r) {
    const uint8_t* from = w.data + r * w.row_bytes;
    for (int64_t c = 0; c < w.n_columns; c += block, from += bytes, out += block) unpack(from, w.table, out);
  }
}

}  // namespace
}  // namespace pellucid
