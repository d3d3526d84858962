// The vector operations of AVX-512 with VNNI: a whole panel at a time. For the files that are compiled for it.
#pragma once
#include <immintrin.h>

#include "kernel.h"

namespace pellucid {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16, kTile = 16;
  static constexpr bool kSigned = false;
  typedef float F __attribute__((vector_size(64)));
  typedef int32_t I __attribute__((vector_size(64)));
  typedef uint32_t U __attribute__((vector_size(64)));

  template <class T>
  static T read(const uint8_t* p) {
    T out;
    __builtin_memcpy(&out, p, sizeof out);
    return out;
  }
  static F splat(float x) { return (F)_mm512_set1_ps(x); }
  static I splat(int x) { return (I)_mm512_set1_epi32(x); }
  static F to_float(I x) { return (F)_mm512_cvtepi32_ps((__m512i)x); }
  static F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
  static F halves(const uint8_t* p) { return (F)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static F bytes(const uint8_t* p) { return (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))); }
  static F exponents(const uint8_t* p) {
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23), small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    return (F)_mm512_mask_blend_epi32(_mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2)), normal, small);
  }
  static U look_up(U codes, const uint8_t (&table)[16]) {
    return (U)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))), (__m512i)codes);
  }
  template <bool>
  static I dot(I sum, U codes, const uint8_t* x) { return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(read<int>(x))); }
};

}  // namespace

}  // namespace pellucid
