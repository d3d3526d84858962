// AVX2 with FMA and F16C: half a panel at a time.
#include <immintrin.h>

#include "kernel.h"

namespace pellucid {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8, kTile = 4;
  static constexpr bool kSigned = true;
  typedef float F __attribute__((vector_size(32)));
  typedef int32_t I __attribute__((vector_size(32)));
  typedef uint32_t U __attribute__((vector_size(32)));

  template <class T>
  static T read(const uint8_t* p) {
    T out;
    __builtin_memcpy(&out, p, sizeof out);
    return out;
  }
  static F splat(float x) { return (F)_mm256_set1_ps(x); }
  static I splat(int x) { return (I)_mm256_set1_epi32(x); }
  static F to_float(I x) { return (F)_mm256_cvtepi32_ps((__m256i)x); }
  static F fma(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
  static F halves(const uint8_t* p) { return (F)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static F bytes(const uint8_t* p) {
    return (F)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static F exponents(const uint8_t* p) {
    float out[8];
    for (int i = 0; i < 8; ++i) out[i] = half_power(p[i]);
    return (F)_mm256_loadu_ps(out);
  }
  static U look_up(U codes, const uint8_t (&table)[16]) {
    return (U)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))), (__m256i)codes);
  }
  // vpmaddubsw adds two products in 16 bits: 2 * 127 * 127 fits, and 2 * 128 * 127 too, so wide codes are signed here and give their sign to x.
  template <bool kWide>
  static I dot(I sum, U codes, const uint8_t* x) {
    __m256i w = (__m256i)codes, x4 = _mm256_set1_epi32(read<int>(x));
    if constexpr (kWide) {
      x4 = _mm256_sign_epi8(x4, w);
      w = _mm256_abs_epi8(w);
    }
    return sum + (I)_mm256_madd_epi16(_mm256_maddubs_epi16(w, x4), _mm256_set1_epi16(1));
  }
};

}  // namespace

extern const Variant kAvx2;
constexpr Variant kAvx2 = make<Avx2>("avx2");

}  // namespace pellucid
