// From a file's blocks to panels, and back to numbers.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "blocks.h"
#include "numbers.h"
#include "packed.h"
#include "pool.h"

namespace pellucid {
namespace {

// Row r's codes of 32 columns go to the panel's lines, four codes at a time.
template <int kFormat>
void write_codes(const uint8_t* codes, int r, uint8_t* lines) {
  constexpr Layout L = kLayouts[kFormat];
  constexpr uint32_t kLow = 0x01010101u * ((1u << L.bits) - 1u), kHigh = 0x01010101u * ((1u << L.high_bits) - 1u);
  uint32_t quads[8];
  std::memcpy(quads, codes, sizeof quads);
  const auto write = [r](uint8_t* line, uint32_t word) { std::memcpy(line + 4 * r, &word, 4); };
  if constexpr (L.bits == 8) {
    for (int j = 0; j < 8; ++j) write(lines + kLine * j, quads[j]);
  } else if constexpr (L.bits == 4) {
    for (int j = 0; j < 4; ++j) write(lines + kLine * j, (quads[j] & kLow) | (quads[j + 4] & kLow) << 4);
  } else {
    for (int i = 0; i < 2; ++i) {
      const uint32_t* q = quads + 4 * i;
      write(lines + kLine * i, (q[0] & kLow) | (q[1] & kLow) << 2 | (q[2] & kLow) << 4 | (q[3] & kLow) << 6);
    }
  }
  uint8_t* high = lines + L.line_bytes();
  if constexpr (L.high_bits == 1) {
    uint32_t word = 0;
    for (int j = 0; j < 8; ++j) word |= (quads[j] >> L.bits & kHigh) << j;
    write(high, word);
  } else if constexpr (L.high_bits == 2) {
    for (int i = 0; i < 2; ++i) {
      uint32_t word = 0;
      for (int j = 0; j < 4; ++j) word |= (quads[4 * i + j] >> L.bits & kHigh) << 2 * j;
      write(high + kLine * i, word);
    }
  }
}

// Row r's codes of 32 columns.
void read_lines(const Layout& layout, const uint8_t* lines, int r, uint8_t (&codes)[kColumns]) {
  const uint8_t* high_lines = lines + layout.line_bytes();
  for (int k = 0; k < kColumns; ++k) {
    const int j = k / 4, line = layout.bits == 8 ? j : layout.bits == 4 ? j % 4 : j / 4, at = layout.bits == 8 ? 0 : layout.bits == 4 ? j / 4 * 4 : j % 4 * 2;
    codes[k] = lines[kLine * line + 4 * r + k % 4] >> at & ((1 << layout.bits) - 1);
    if (layout.high_bits == 1) codes[k] |= (high_lines[4 * r + k % 4] >> j & 1) << layout.bits;
    if (layout.high_bits == 2) codes[k] |= (high_lines[kLine * (j / 4) + 4 * r + k % 4] >> j % 4 * 2 & 3) << layout.bits;
  }
}

// A block of a panel's rows; those past the last are zeros.
template <int kFormat>
void repack_block(const uint8_t* from, int64_t row_bytes, int n_rows, uint8_t* to) {
  constexpr Layout L = kLayouts[kFormat];
  Block row;
  for (int r = 0; r < kPanel; ++r) {
    if (r < n_rows) kRead[kFormat](from + r * row_bytes, row);
    else row = Block{};
    uint8_t* out = to;
    if constexpr (L.scale == Scale::exponent) out[r] = static_cast<uint8_t>(row.scale);
    else std::memcpy(out + 2 * r, &row.scale, 2);
    if constexpr (L.minimum) std::memcpy(out + 2 * kPanel + 2 * r, &row.minimum, 2);
    out += L.head_bytes();
    for (int i = 0; i < L.block / kColumns; ++i, out += L.part_bytes()) {
      if constexpr (L.scale == Scale::codes)
        for (int g = 0; g < L.n_groups(); ++g) {
          out[kPanel * g + r] = static_cast<uint8_t>(row.scales[L.n_groups() * i + g]);
          if constexpr (L.minimum) out[kPanel * (L.n_groups() + g) + r] = static_cast<uint8_t>(row.minima[L.n_groups() * i + g]);
        }
      write_codes<kFormat>(row.codes + kColumns * i, r, out + L.code_bytes());
    }
  }
}

using RepackBlock = void (*)(const uint8_t* from, int64_t row_bytes, int n_rows, uint8_t* to);

template <size_t... kFormat>
constexpr std::array<RepackBlock, kFormats> every_repack(std::index_sequence<kFormat...>) {
  return {repack_block<kFormat>...};
}
constexpr std::array<RepackBlock, kFormats> kRepack = every_repack(std::make_index_sequence<kFormats>());

int value_of(const Layout& layout, uint8_t code) {
  return (layout.table == Table::none ? code : (layout.table == Table::iq4 ? kIq4 : kE2m1)[code]) - layout.offset;
}

float read_half(const void* p) {
  F16 half;
  std::memcpy(&half, p, 2);
  return wide(half);
}

void unpack_block(const Layout& layout, const uint8_t* from, int r, float* out) {
  const uint8_t* head = from;
  from += layout.head_bytes();
  const float d = layout.scale == Scale::exponent ? std::ldexp(1.0f, head[r] - 128) : read_half(head + 2 * r);
  const float m = layout.minimum ? read_half(head + 2 * kPanel + 2 * r) : 0.0f;
  for (int i = 0; i < layout.block / kColumns; ++i, from += layout.part_bytes()) {
    uint8_t codes[kColumns];
    read_lines(layout, from + layout.code_bytes(), r, codes);
    for (int k = 0; k < kColumns; ++k) {
      const int g = k / layout.group;
      const bool coded = layout.scale == Scale::codes;
      const float scale = coded ? d * static_cast<int8_t>(from[kPanel * g + r]) : d;
      const int value = value_of(layout, codes[k]);
      const float product = scale * static_cast<float>(value);
      if (layout.minimum) out[kColumns * i + k] = product - (coded ? m * static_cast<int8_t>(from[kPanel * (layout.n_groups() + g) + r]) : m);
      else out[kColumns * i + k] = product;
    }
  }
}

template <int kFormat>
void unpack_file_block(const uint8_t* from, float* out) {
  constexpr Layout L = kLayouts[kFormat];
  Block block;
  kRead[kFormat](from, block);
  const float d = L.scale == Scale::exponent ? std::ldexp(1.0f, block.scale - 128) : read_half(&block.scale), m = L.minimum ? read_half(&block.minimum) : 0.0f;
  for (int k = 0; k < L.block; ++k) {
    const int g = k / L.group;
    out[k] = (L.scale == Scale::codes ? d * block.scales[g] : d) * static_cast<float>(value_of(L, block.codes[k]));
    if constexpr (L.minimum) out[k] -= L.scale == Scale::codes ? m * block.minima[g] : m;
  }
}

using UnpackBlock = void (*)(const uint8_t* from, float* out);

template <size_t... kFormat>
constexpr std::array<UnpackBlock, kFormats> every_unpack(std::index_sequence<kFormat...>) {
  return {unpack_file_block<kFormat>...};
}
constexpr std::array<UnpackBlock, kFormats> kUnpack = every_unpack(std::make_index_sequence<kFormats>());

}  // namespace

void unpack_row(int format, const uint8_t* from, int64_t n_columns, float* out) {
  const Layout& layout = kLayouts[format];
  for (int64_t b = 0; b < n_columns / layout.block; ++b) kUnpack[format](from + b * layout.source_bytes, out + b * layout.block);
}

void repack(int format, const uint8_t* from, int64_t n_rows, int64_t n_columns, uint8_t* to) {
  const Layout& layout = kLayouts[format];
  const int64_t n_blocks = n_columns / layout.block, row_bytes = n_blocks * layout.source_bytes, n_panels = (n_rows + kPanel - 1) / kPanel;
  parallel_for(n_panels, [&](int64_t panel) {
    const uint8_t* source = from + panel * kPanel * row_bytes;
    const int rows = static_cast<int>(std::min<int64_t>(kPanel, n_rows - panel * kPanel));
    uint8_t* out = to + panel * n_blocks * layout.panel_bytes();
    for (int64_t b = 0; b < n_blocks; ++b) kRepack[format](source + b * layout.source_bytes, row_bytes, rows, out + b * layout.panel_bytes());
  });
}

void unpack(const Packed& w, const int64_t* rows, int64_t n, float* out) {
  const Layout& layout = kLayouts[w.format];
  const int64_t n_blocks = w.n_columns / layout.block;
  parallel_for(n, [&](int64_t i) {
    const uint8_t* panel = w.data + rows[i] / kPanel * n_blocks * layout.panel_bytes();
    for (int64_t b = 0; b < n_blocks; ++b)
      unpack_block(layout, panel + b * layout.panel_bytes(), static_cast<int>(rows[i] % kPanel), out + i * w.n_columns + b * layout.block);
  });
}

}  // namespace pellucid
