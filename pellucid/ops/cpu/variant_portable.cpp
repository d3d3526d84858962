// For every processor: plain C++ over the compiler's own vectors of 16 bytes.
#include "kernel.h"
#include "numbers.h"

namespace pellucid {
namespace {

struct Portable {
  static constexpr int kLanes = 4, kTile = 4;
  static constexpr bool kSigned = false;
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));

  template <class T>
  static T read(const uint8_t* p) {
    T out;
    __builtin_memcpy(&out, p, sizeof out);
    return out;
  }
  static F splat(float x) { return F{x, x, x, x}; }
  static I splat(int x) { return I{x, x, x, x}; }
  static F to_float(I x) { return __builtin_convertvector(x, F); }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F halves(const uint8_t* p) { return F{wide(read<F16>(p)), wide(read<F16>(p + 2)), wide(read<F16>(p + 4)), wide(read<F16>(p + 6))}; }
  static F exponents(const uint8_t* p) { return F{half_power(p[0]), half_power(p[1]), half_power(p[2]), half_power(p[3])}; }
  static F bytes(const uint8_t* p) {
    const int8_t* b = reinterpret_cast<const int8_t*>(p);
    return F{float(b[0]), float(b[1]), float(b[2]), float(b[3])};
  }
  static U look_up(U codes, const uint8_t (&table)[16]) {
    uint8_t b[16];
    __builtin_memcpy(b, &codes, 16);
    for (uint8_t& code : b) code = table[code];
    __builtin_memcpy(&codes, b, 16);
    return codes;
  }
  template <bool>
  static I dot(I sum, U codes, const uint8_t* x) {
    const int8_t* b = reinterpret_cast<const int8_t*>(x);
    for (int k = 0; k < 4; ++k) sum += reinterpret_cast<I>(codes >> 8 * k & 255u) * b[k];
    return sum;
  }
};

}  // namespace

extern const Variant kPortable;
constexpr Variant kPortable = make<Portable>("portable");

}  // namespace pellucid
