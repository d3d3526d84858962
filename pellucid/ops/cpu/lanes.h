// Vectors of floats in the compiler's own notation: one text for AVX-512, AVX2, NEON and plain C++, kLanes wide as the flags of the file allow.
// All of it is in the file's unnamed namespace: two files compiled with different flags must not share a function (see variant.h).
#pragma once
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "numbers.h"

#define PELLUCID_UNROLL _Pragma("GCC unroll 32")  // what is to stay in registers must not be a loop

namespace pellucid {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float F __attribute__((vector_size(4 * kLanes)));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

inline F all(float x) { return x - F{}; }
inline void store(float* p, F x) { __builtin_memcpy(p, &x, sizeof x); }
inline F larger(F a, F b) { return a > b ? a : b; }  // b where one of them is no number: what is not to go unnoticed stands there
inline F smaller(F a, F b) { return a < b ? a : b; }

// a * b + c, rounded once where the processor can: the same in every instance of a template.
inline F fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
inline F fma(F a, float b, F c) { return fma(a, all(b), c); }

inline I iota() {
  I x;
  for (int i = 0; i < kLanes; ++i) x[i] = i;
  return x;
}

inline float sum(F x) {  // always in this order
  float y[kLanes];
  store(y, x);
  for (int n = kLanes / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) y[i] += y[i + n];
  return y[0];
}

inline float largest(F x) {
  float y = x[0];
  for (int i = 1; i < kLanes; ++i) y = x[i] > y ? x[i] : y;
  return y;
}

// As many numbers of a kind as there are lanes, as floats.
inline F load(const float* p) {
  F x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline F load(const Bf16* p) {
  Halves x;
  __builtin_memcpy(&x, p, sizeof x);
  return (F)(__builtin_convertvector(x, U) << 16);
}
inline F load(const F16* p) {
#if defined(__AVX512F__)
  return (F)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (F)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  F x;
  for (int i = 0; i < kLanes; ++i) x[i] = wide(p[i]);
  return x;
#endif
}
inline F load(const int8_t* p) {
  Bytes x;
  __builtin_memcpy(&x, p, sizeof x);
  return __builtin_convertvector(__builtin_convertvector(x, I), F);
}

constexpr float kRound = 0x1.8p23f;  // adding it and taking it away rounds numbers below 2^22 to whole ones, ties to even

// e to the x, to two roundings; 0 below -87.3, where it is no normal number. The polynomial is Cephes': https://www.netlib.org/cephes/, expf.
inline F exp(F x) {
  const F low = all(-87.33f), y = smaller(larger(x, low), all(88.3f));
  const F n = fma(y, 1.44269504f, all(kRound)) - kRound;
  const F r = fma(n, 2.12194440e-4f, fma(n, -0.693359375f, y));
  F p = fma(r, 1.9875691500e-4f, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
  const F e = (F)((I)p + (__builtin_convertvector(n, I) << 23));
  return x > low ? e : x == x ? F{} : x;
}

inline F sigmoid(F x) { return 1.0f / (1.0f + exp(-x)); }

inline F tanh(F x) { return 1.0f - 2.0f / (exp(smaller(all(40.0f), x + x)) + 1.0f); }  // to 2e-7, not relatively

// To 2e-7, not relatively: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
inline F erf(F x) {
  const F size = (F)((U)x & 0x7FFFFFFFu), t = 1.0f / fma(size, 0.3275911f, all(1.0f));
  F p = fma(t, 1.061405429f, all(-1.453152027f));
  p = fma(p, t, all(1.421413741f));
  p = fma(p, t, all(-0.284496736f));
  p = fma(p, t, all(0.254829592f));
  const F y = 1.0f - p * t * exp(-size * size);
  return x < 0.0f ? -y : y;
}

// One of the steps that turn kLanes x kLanes numbers around: elements D apart change places with those of the vector D further on.
template <int D>
inline void exchange(F* x) {
  I low, high;
  PELLUCID_UNROLL for (int j = 0; j < kLanes; ++j) {
    low[j] = j & D ? kLanes + j - D : j;
    high[j] = j & D ? kLanes + j : j + D;
  }
  PELLUCID_UNROLL for (int i = 0; i < kLanes; ++i)
    if (!(i & D)) {
      const F a = x[i], b = x[i + D];
      x[i] = __builtin_shuffle(a, b, low);
      x[i + D] = __builtin_shuffle(a, b, high);
    }
}

inline void transpose(F* x) {
  if constexpr (kLanes >= 16) exchange<8>(x);
  if constexpr (kLanes >= 8) exchange<4>(x);
  exchange<2>(x);
  exchange<1>(x);
}

// Of kLanes vectors x the sum of each, in the order of `sum`: lane i of x[0] is that of x[i].
template <int D = kLanes / 2>
inline void add_up(F* x) {
  I low, high;
  PELLUCID_UNROLL for (int j = 0; j < kLanes; ++j) {
    low[j] = j & D ? kLanes + j - D : j;
    high[j] = j & D ? kLanes + j : j + D;
  }
  PELLUCID_UNROLL for (int i = 0; i < D; ++i) x[i] = __builtin_shuffle(x[i], x[i + D], low) + __builtin_shuffle(x[i], x[i + D], high);
  if constexpr (D > 1) add_up<D / 2>(x);
}

}  // namespace
}  // namespace pellucid
