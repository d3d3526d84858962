// What works on rows of floats one by one: norms, rotation, gates, quantization, and products with a matrix that is not packed.
#pragma once
#include "lanes.h"
#include "lanes_table.h"
#include "packed.h"

namespace pellucid {
namespace {

inline float sum_of(const float* x, int64_t n, float less, bool squares) {
  F sums{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F y = load(x + i) - less;
    sums = squares ? fma(y, y, sums) : sums + y;
  }
  float out = sum(sums);
  for (; i < n; ++i) out += squares ? (x[i] - less) * (x[i] - less) : x[i] - less;
  return out;
}

void normalize(const Norm& norm, const float* x, int64_t n, float* out) {
  const float mean = norm.layer ? sum_of(x, n, 0.0f, false) / static_cast<float>(n) : 0.0f;
  const float factor = 1.0f / __builtin_sqrtf(sum_of(x, n, mean, true) / static_cast<float>(n) + norm.eps);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    F y = (load(x + i) - mean) * factor;
    if (norm.weight) y *= load(norm.weight + i) + norm.offset;
    if (norm.bias) y += load(norm.bias + i);
    store(out + i, y);
  }
  for (; i < n; ++i) {
    float y = (x[i] - mean) * factor;
    if (norm.weight) y *= norm.weight[i] + norm.offset;
    if (norm.bias) y += norm.bias[i];
    out[i] = y;
  }
}

void rotate(float* x, const float* cos, const float* sin, int64_t R, bool adjacent) {
  if (adjacent) {
    for (int64_t c = 0; c < R; c += 2) {
      const float a = x[c], b = x[c + 1];
      x[c] = a * cos[c] + b * sin[c];
      x[c + 1] = b * cos[c + 1] + a * sin[c + 1];
    }
    return;
  }
  const int64_t P = R / 2;
  int64_t c = 0;
  for (; c + kLanes <= P; c += kLanes) {
    const F a = load(x + c), b = load(x + P + c);
    store(x + c, a * load(cos + c) + b * load(sin + c));
    store(x + P + c, b * load(cos + P + c) + a * load(sin + P + c));
  }
  for (; c < P; ++c) {
    const float a = x[c], b = x[P + c];
    x[c] = a * cos[c] + b * sin[c];
    x[P + c] = b * cos[P + c] + a * sin[P + c];
  }
}

inline F activated(Act act, float slope, F x) {
  switch (act) {
    case Act::silu: return x * sigmoid(x * slope);
    case Act::gelu: return x * 0.5f * (1.0f + erf(x * 0.70710678f));
    case Act::gelu_tanh: return x * 0.5f * (1.0f + tanh(0.79788456f * fma(x * x * x, 0.044715f, x)));
    case Act::gelu_quick: return x * sigmoid(x * 1.702f);
    case Act::relu: return larger(F{}, x);
    case Act::relu2: return larger(F{}, x) * larger(F{}, x);
    default: return x;
  }
}

void gate(const Gate& how, const float* gate, const float* up, int64_t n, float* out) {
  auto one = [&](F g, F u) {
    g = activated(how.act, how.slope, smaller(all(how.limit), g));
    return up ? g * (smaller(all(how.limit), larger(all(-how.limit), u)) + how.up_offset) : g;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, one(load(gate + i), up ? load(up + i) : F{}));
  if (i == n) return;
  float last[2][kLanes] = {};
  __builtin_memcpy(last[0], gate + i, (n - i) * sizeof(float));
  if (up) __builtin_memcpy(last[1], up + i, (n - i) * sizeof(float));
  const F y = one(load(last[0]), load(last[1]));
  __builtin_memcpy(out + i, &y, (n - i) * sizeof(float));
}

// f of every lane's number, in place; what is past the end is zeros.
template <class Fn>
inline void each(float* x, int64_t n, Fn&& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, f(load(x + i)));
  if (i == n) return;
  float last[kLanes] = {};
  __builtin_memcpy(last, x + i, (n - i) * sizeof(float));
  const F y = f(load(last));
  __builtin_memcpy(x + i, &y, (n - i) * sizeof(float));
}

void scale(float* x, int64_t n, float factor, float cap) {
  each(x, n, [&](F y) { return cap == 0.0f ? y * factor : tanh(y * factor / cap) * cap; });
}

void add(float* to, const float* from, int64_t n, float factor) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(to + i) + load(from + i) * factor);
  for (; i < n; ++i) to[i] += from[i] * factor;
}

Largest largest(const float* x, int64_t n) {
  F most = all(x[0]), nothing{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) most = larger(load(x + i), most), nothing += load(x + i) * 0.0f;
  float number = largest(most), none = sum(nothing);
  for (; i < n; ++i) number = x[i] > number ? x[i] : number, none += x[i] * 0.0f;
  if (none != 0.0f) return {number, -1};
  for (i = 0; x[i] != number;) ++i;
  return {number, i};
}

void halve(const float* x, int64_t n, F16* out) {
  constexpr float kPast = 65520.0f;  // rounds to 2^16, which float16 lacks
  const float nan = __builtin_nanf("");
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + kLanes <= n; i += kLanes) {
    F y = load(x + i);
    y = (y < kPast) & (y > -kPast) ? y : all(nan);
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_maskz_cvtps_ph(0xFFFF, (__m512)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph((__m256)y, _MM_FROUND_TO_NEAREST_INT));
#endif
  }
#endif
  for (; i < n; ++i) narrow(x[i] < kPast && x[i] > -kPast ? x[i] : nan, out[i]);
}

constexpr float kLeast = 0x1p-100f;  // what is smaller is nothing: its inverse might not be finite. As in kernel.h

void quantize_row(const float* x, int64_t n_columns, int m, int n, uint8_t* out) {
  constexpr int N = kColumns / kLanes;
  for (int64_t block = 0; block < n_columns / kColumns; ++block, x += kColumns, out += n * kRowBytes) {
    U most{};
    for (int i = 0; i < N; ++i) {
      const U bits = (U)load(x + i * kLanes) & 0x7FFFFFFFu;  // numbers without a sign are in the order of their bits
      most = bits > most ? bits : most;
    }
    uint32_t largest = 0;
    for (int i = 0; i < kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
    const bool finite = largest < 0x7F800000u;
    const float size = as_float(largest), factor = finite && size >= kLeast ? 127.0f / size : 0.0f;
    const float scale = !finite ? __builtin_nanf("") : size >= kLeast ? size / 127.0f : 0.0f;
    int8_t numbers[kColumns] = {};
    I sums[2] = {};
    if (finite)
      for (int i = 0; i < N; ++i) {
        const F y = load(x + i * kLanes) * factor;
        const I q = __builtin_convertvector((y + kRound) - kRound, I);
        sums[i * 2 / N] -= q;
        const Bytes b = __builtin_convertvector(q, Bytes);
        __builtin_memcpy(numbers + i * kLanes, &b, sizeof b);
      }
    int32_t halves[2] = {};
    for (int i = 0; i < kLanes; ++i) halves[0] += sums[0][i], halves[1] += sums[1][i];
    const int32_t all_of = halves[0] + halves[1];
    const float shift = scale * static_cast<float>(all_of);
    __builtin_memcpy(out + m * kColumns, numbers, sizeof numbers);
    uint8_t* facts = out + n * kColumns + 4 * m;
    __builtin_memcpy(facts, &scale, 4);
    __builtin_memcpy(facts + 4 * n, &all_of, 4);
    __builtin_memcpy(facts + 8 * n, &halves[0], 4);
    __builtin_memcpy(facts + 12 * n, &shift, 4);
  }
}

// N rows of the weight times n of x. Each number is one chain over the columns in every lane, then the lanes' sum.
template <class T, int N, int n>
void dense_tile(const T* w, int64_t D, const float* x, int64_t x_stride, float* out, int64_t out_stride) {
  F sums[N][n] = {};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    F y[n];
    PELLUCID_UNROLL for (int t = 0; t < n; ++t) y[t] = load(x + t * x_stride + d);
    PELLUCID_UNROLL for (int f = 0; f < N; ++f) {
      const F v = load(w + f * D + d);
      PELLUCID_UNROLL for (int t = 0; t < n; ++t) sums[f][t] = fma(v, y[t], sums[f][t]);
    }
  }
  for (int f = 0; f < N; ++f)
    for (int t = 0; t < n; ++t) {
      float y = sum(sums[f][t]);
      for (int64_t i = d; i < D; ++i) y += wide(w[f * D + i]) * x[t * x_stride + i];
      out[t * out_stride + f] = y;
    }
}

template <class T, int N>
void dense_rows(const T* w, int64_t D, const float* x, int64_t x_stride, int64_t n, float* out, int64_t out_stride) {
  int64_t t = 0;
  if constexpr (kLanes == 16 && N == 4)  // 24 sums and what is loaded for them are as much as the registers hold
    for (; t + 6 <= n; t += 6) dense_tile<T, N, 6>(w, D, x + t * x_stride, x_stride, out + t * out_stride, out_stride);
  for (; t + 4 <= n; t += 4) dense_tile<T, N, 4>(w, D, x + t * x_stride, x_stride, out + t * out_stride, out_stride);
  for (; t + 2 <= n; t += 2) dense_tile<T, N, 2>(w, D, x + t * x_stride, x_stride, out + t * out_stride, out_stride);
  for (; t < n; ++t) dense_tile<T, N, 1>(w, D, x + t * x_stride, x_stride, out + t * out_stride, out_stride);
}

template <class T>
void dense_as(const T* w, int64_t D, int64_t first, int64_t last, const float* x, int64_t x_stride, int64_t n, float* out, int64_t out_stride) {
  constexpr int N = kLanes == 16 ? 4 : 2;
  int64_t f = first;
  for (; f + N <= last; f += N) dense_rows<T, N>(w + f * D, D, x, x_stride, n, out + f, out_stride);
  for (; f < last; ++f) dense_rows<T, 1>(w + f * D, D, x, x_stride, n, out + f, out_stride);
}

void multiply_dense(const void* w, Kind kind, int64_t D, int64_t first, int64_t last, const float* x, int64_t x_stride, int64_t n, float* out,
                    int64_t out_stride) {
  if (kind == Kind::f32) dense_as(static_cast<const float*>(w), D, first, last, x, x_stride, n, out, out_stride);
  else if (kind == Kind::bf16) dense_as(static_cast<const Bf16*>(w), D, first, last, x, x_stride, n, out, out_stride);
  else dense_as(static_cast<const F16*>(w), D, first, last, x, x_stride, n, out, out_stride);
}

}  // namespace
}  // namespace pellucid
