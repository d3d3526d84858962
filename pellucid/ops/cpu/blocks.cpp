#include "blocks.h"

#include <cmath>
#include <cstring>

namespace pellucid {
namespace {

void read_q8_0(const uint8_t* from, Block& to) {
  std::memcpy(&to.scale, from, 2);
  for (int k = 0; k < 32; ++k) to.codes[k] = from[2 + k] ^ 0x80;
}

}  // namespace

const Read kRead[kFormats] = {read_q8_0};

float half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float out = exponent == 31 ? (fraction ? NAN : INFINITY) : exponent ? std::ldexp(float(1024 + fraction), exponent - 25) : std::ldexp(float(fraction), -24);
  return bits & 0x8000 ? -out : out;
}

}  // namespace pellucid
