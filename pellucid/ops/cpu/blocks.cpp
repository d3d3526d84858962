#include "blocks.h"

#include <cstring>

namespace pellucid {
namespace {

uint16_t word(const uint8_t* from) {
  uint16_t out;
  std::memcpy(&out, from, 2);
  return out;
}

// The lower halves of n bytes, then the upper ones.
void nibbles(const uint8_t* from, int n, uint8_t* to) {
  for (int k = 0; k < n; ++k) to[k] = from[k] & 15;
  for (int k = 0; k < n; ++k) to[n + k] = from[k] >> 4;
}

// Two bits a number, 256 of them: of each half's 32 bytes the lowest bits come first, then the next ones.
void quarters(const uint8_t* from, uint8_t* to) {
  for (int h = 0; h < 2; ++h)
    for (int p = 0; p < 4; ++p)
      for (int k = 0; k < 32; ++k) to[128 * h + 32 * p + k] = from[32 * h + k] >> 2 * p & 3;
}

// Bit i of 32 bytes is number i * 32 and on, worth `value`.
void add_plane(const uint8_t* from, uint8_t value, uint8_t* to) {
  for (int i = 0; i < 8; ++i)
    for (int k = 0; k < 32; ++k) to[32 * i + k] |= (from[k] >> i & 1) * value;
}

// The fifth bits of 32 numbers, in their order: eight copies of a byte, of each its own bit.
void add_fifth(const uint8_t* from, uint8_t* to) {
  for (int i = 0; i < 4; ++i) {
    uint64_t codes;
    std::memcpy(&codes, to + 8 * i, 8);
    const uint64_t bits = from[i] * 0x0101010101010101u & 0x8040201008040201u;  // bit k of byte k
    codes |= ((bits + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;  // the upper bit of every byte that is not zero
    std::memcpy(to + 8 * i, &codes, 8);
  }
}

// Minima are taken off, and these formats add theirs.
uint16_t negated(const uint8_t* half) { return word(half) ^ 0x8000; }

void read_q8_0(const uint8_t* from, Block& to) {
  to.scale = word(from);
  for (int k = 0; k < 32; ++k) to.codes[k] = from[2 + k] ^ 0x80;
}

void read_q4_0(const uint8_t* from, Block& to) {  // and IQ4_NL
  to.scale = word(from);
  nibbles(from + 2, 16, to.codes);
}

void read_q4_1(const uint8_t* from, Block& to) {
  to.scale = word(from), to.minimum = negated(from + 2);
  nibbles(from + 4, 16, to.codes);
}

void read_q5_0(const uint8_t* from, Block& to) {
  to.scale = word(from);
  nibbles(from + 6, 16, to.codes);
  add_fifth(from + 2, to.codes);
}

void read_q5_1(const uint8_t* from, Block& to) {
  to.scale = word(from), to.minimum = negated(from + 2);
  nibbles(from + 8, 16, to.codes);
  add_fifth(from + 4, to.codes);
}

void read_mxfp4(const uint8_t* from, Block& to) {
  to.scale = *from;
  nibbles(from + 1, 16, to.codes);
}

void read_q2_k(const uint8_t* from, Block& to) {
  for (int g = 0; g < 16; ++g) to.scales[g] = from[g] & 15, to.minima[g] = from[g] >> 4;
  quarters(from + 16, to.codes);
  to.scale = word(from + 80), to.minimum = word(from + 82);
}

void read_q3_k(const uint8_t* from, Block& to) {
  const uint8_t* scales = from + 96;
  quarters(from + 32, to.codes);
  add_plane(from, 4, to.codes);
  for (int g = 0; g < 16; ++g) to.scales[g] = ((scales[g % 8] >> g / 8 * 4 & 15) | (scales[8 + g % 4] >> g / 4 * 2 & 3) << 4) - 32;
  to.scale = word(from + 108);
}

// Q4_K's and Q5_K's eight scales and minima of six bits, of the last four the upper two among the first four's.
void read_sixes(const uint8_t* from, Block& to) {
  to.scale = word(from), to.minimum = word(from + 2);
  const uint8_t* b = from + 4;
  for (int g = 0; g < 4; ++g) {
    to.scales[g] = b[g] & 63, to.minima[g] = b[4 + g] & 63;
    to.scales[4 + g] = (b[8 + g] & 15) | b[g] >> 6 << 4;
    to.minima[4 + g] = b[8 + g] >> 4 | b[4 + g] >> 6 << 4;
  }
}

void read_q4_k(const uint8_t* from, Block& to) {
  read_sixes(from, to);
  for (int i = 0; i < 4; ++i) nibbles(from + 16 + 32 * i, 32, to.codes + 64 * i);
}

void read_q5_k(const uint8_t* from, Block& to) {
  read_sixes(from, to);
  for (int i = 0; i < 4; ++i) nibbles(from + 48 + 32 * i, 32, to.codes + 64 * i);
  add_plane(from + 16, 16, to.codes);
}

void read_q6_k(const uint8_t* from, Block& to) {
  uint8_t high[256];
  quarters(from + 128, high);
  for (int h = 0; h < 2; ++h) nibbles(from + 64 * h, 64, to.codes + 128 * h);
  for (int k = 0; k < 256; ++k) to.codes[k] |= high[k] << 4;
  std::memcpy(to.scales, from + 192, 16);
  to.scale = word(from + 208);
}

void read_iq4_xs(const uint8_t* from, Block& to) {
  to.scale = word(from);
  for (int g = 0; g < 8; ++g) to.scales[g] = ((from[4 + g / 2] >> g % 2 * 4 & 15) | (from[2 + g / 4] >> g % 4 * 2 & 3) << 4) - 32;
  for (int g = 0; g < 8; ++g) nibbles(from + 8 + 16 * g, 16, to.codes + 32 * g);
}

}  // namespace

// In the order of kLayouts.
const Read kRead[kFormats] = {read_q8_0, read_q4_0, read_q4_1, read_q5_0, read_q5_1, read_q4_0, read_mxfp4,
                              read_q2_k, read_q3_k, read_q4_k, read_q5_k, read_q6_k, read_iq4_xs};

}  // namespace pellucid
