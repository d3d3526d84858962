// From a file's blocks to panels, and back to numbers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "blocks.h"
#include "numbers.h"
#include "packed.h"
#include "pool.h"

namespace pellucid {
namespace {

// The lines of 32 columns of a panel: codes[r] are row r's.
void write_lines(const Layout& layout, const uint8_t (&codes)[kPanel][kColumns], uint8_t* lines) {
  const uint32_t low = 0x01010101u * ((1u << layout.bits) - 1u), high = 0x01010101u * ((1u << layout.high_bits) - 1u);
  uint8_t* high_lines = lines + layout.line_bytes();
  std::memset(lines, 0, layout.line_bytes() + layout.high_bytes());
  const auto add = [](uint8_t* to, uint32_t word) {
    uint32_t held;
    std::memcpy(&held, to, 4);
    held |= word;
    std::memcpy(to, &held, 4);
  };
  for (int r = 0; r < kPanel; ++r) {
    for (int j = 0; j < 8; ++j) {
      uint32_t quad;
      std::memcpy(&quad, codes[r] + 4 * j, 4);
      const int line = layout.bits == 8 ? j : layout.bits == 4 ? j % 4 : j / 4, at = layout.bits == 8 ? 0 : layout.bits == 4 ? j / 4 * 4 : j % 4 * 2;
      add(lines + kLine * line + 4 * r, (layout.bits == 8 ? quad : quad & low) << at);
      if (layout.high_bits == 1) add(high_lines + 4 * r, (quad >> layout.bits & high) << j);
      if (layout.high_bits == 2) add(high_lines + kLine * (j / 4) + 4 * r, (quad >> layout.bits & high) << j % 4 * 2);
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

void repack_block(const Layout& layout, const Block (&rows)[kPanel], uint8_t* to) {
  const int n_groups = layout.n_groups();
  for (int r = 0; r < kPanel; ++r) {
    if (layout.scale == Scale::exponent) to[r] = static_cast<uint8_t>(rows[r].scale);
    else std::memcpy(to + 2 * r, &rows[r].scale, 2);
    if (layout.minimum) std::memcpy(to + 2 * kPanel + 2 * r, &rows[r].minimum, 2);
  }
  to += layout.head_bytes();
  for (int i = 0; i < layout.block / kColumns; ++i, to += layout.part_bytes()) {
    if (layout.scale == Scale::codes)
      for (int g = 0; g < n_groups; ++g)
        for (int r = 0; r < kPanel; ++r) {
          to[kPanel * g + r] = static_cast<uint8_t>(rows[r].scales[n_groups * i + g]);
          if (layout.minimum) to[kPanel * (n_groups + g) + r] = static_cast<uint8_t>(rows[r].minima[n_groups * i + g]);
        }
    uint8_t codes[kPanel][kColumns];
    for (int r = 0; r < kPanel; ++r) std::memcpy(codes[r], rows[r].codes + kColumns * i, kColumns);
    write_lines(layout, codes, to + layout.code_bytes());
  }
}

void unpack_block(const Layout& layout, const uint8_t* from, int r, float* out) {
  const auto read_half = [](const uint8_t* p) {
    F16 half;
    std::memcpy(&half, p, 2);
    return wide(half);
  };
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
      const int value = (layout.table == Table::none ? codes[k] : (layout.table == Table::iq4 ? kIq4 : kE2m1)[codes[k]]) - layout.offset;
      const float product = scale * static_cast<float>(value);
      if (layout.minimum) out[kColumns * i + k] = product - (coded ? m * static_cast<int8_t>(from[kPanel * (layout.n_groups() + g) + r]) : m);
      else out[kColumns * i + k] = product;
    }
  }
}

}  // namespace

void repack(int format, const uint8_t* from, int64_t n_rows, int64_t n_columns, uint8_t* to) {
  const Layout& layout = kLayouts[format];
  const int64_t n_blocks = n_columns / layout.block, row_bytes = n_blocks * layout.source_bytes, n_panels = (n_rows + kPanel - 1) / kPanel;
  parallel_for(n_panels, [&](int64_t panel) {
    uint8_t* out = to + panel * n_blocks * layout.panel_bytes();
    static thread_local Block rows[kPanel];
    for (int64_t b = 0; b < n_blocks; ++b, out += layout.panel_bytes()) {
      for (int r = 0; r < kPanel; ++r) {
        const int64_t row = panel * kPanel + r;
        if (row < n_rows) kRead[format](from + row * row_bytes + b * layout.source_bytes, rows[r]);
        else rows[r] = Block{};
      }
      repack_block(layout, rows, out);
    }
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
