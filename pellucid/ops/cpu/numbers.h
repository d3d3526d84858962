// The kinds of numbers that tensors are made of, as bits, and what one of them means.
#pragma once
#include <cstdint>
#include <cstring>

namespace pellucid {

enum class Kind : int { f32, bf16, f16, i8 };

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

namespace {  // compiled anew in every file, with its flags

inline float as_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t as_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

inline float wide(float x) { return x; }
inline float wide(int8_t x) { return x; }
inline float wide(Bf16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }
inline float wide(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, rest = x.bits & 0x7FFF;
  if (rest >= 0x7C00) return as_float(sign | 0x7F800000 | (rest & 0x3FF) << 13);  // infinite, or no number
  return as_float(sign | as_bits(as_float(rest << 13) * 0x1p112f));  // an exponent of its own: the product is exact, of subnormals too
}

// Rounded to the nearest, ties to even.
inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, Bf16& out) {
  const uint32_t bits = as_bits(x);
  out.bits = static_cast<uint16_t>(x != x ? bits >> 16 | 0x40 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline void narrow(float x, F16& out) {
  const uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
  uint32_t found;
  if (rest > 0x7F800000) found = 0x7E00;
  else if (rest >= 0x477FF000) found = 0x7C00;  // rounds past 65504
  else if (rest < 0x38800000) found = as_bits(as_float(rest) + 0.5f) - as_bits(0.5f);  // below 2^-14 the sum rounds where a subnormal ends
  else found = (rest + 0xFFF + (rest >> 13 & 1) - 0x38000000) >> 13;
  out.bits = static_cast<uint16_t>(sign | found);
}

}  // namespace
}  // namespace pellucid
