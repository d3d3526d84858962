// The kernels of learn.h, in vectors of floats. All of it is in the file's unnamed namespace (see lanes.h).
#pragma once
#include <cmath>
#include <type_traits>

#include "lanes.h"
#include "learn.h"

namespace pellucid {
namespace {

inline void keep(float* p, F x) { store(p, x); }
inline void keep(Bf16* p, F x) {  // rounded to the nearest, ties to even; what is no number stays none
  const U bits = (U)x, rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16, nan = bits >> 16 | 0x40u;
  const Halves y = __builtin_convertvector(x == x ? rounded : nan, Halves);
  __builtin_memcpy(p, &y, sizeof y);
}

// The last numbers of a row, with zeros behind them.
template <class N>
inline F load_some(const N* p, int64_t n) {
  N last[kLanes] = {};
  __builtin_memcpy(last, p, n * sizeof(N));
  return load(last);
}
template <class N>
inline void keep_some(N* p, F x, int64_t n) {
  N last[kLanes];
  keep(last, x);
  __builtin_memcpy(p, last, n * sizeof(N));
}

// f(i, how many) for every vector of n numbers, the last one perhaps of fewer.
template <class Fn>
inline void vectors(int64_t n, Fn&& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, std::integral_constant<int64_t, kLanes>{});
  if (i < n) f(i, n - i);
}
template <class N, class Count>
inline F take(const N* p, Count n) {
  if constexpr (std::is_same_v<Count, int64_t>) return load_some(p, n);
  else return load(p);
}
template <class N, class Count>
inline void give(N* p, F x, Count n) {
  if constexpr (std::is_same_v<Count, int64_t>) keep_some(p, x, n);
  else keep(p, x);
}

template <class N>
void normalize_rows(const Normed& how, int64_t first, int64_t last, void* y_, float* inverse) {
  const int64_t D = how.D;
  const N* weight = static_cast<const N*>(how.weight);
  for (int64_t t = first; t < last; ++t) {
    const N* x = static_cast<const N*>(how.x) + t * D;
    N* y = static_cast<N*>(y_) + t * D;
    F squares{};
    vectors(D, [&](int64_t i, auto n) { const F a = take(x + i, n); squares = fma(a, a, squares); });
    const float inv = 1.0f / std::sqrt(sum(squares) / static_cast<float>(D) + how.eps);
    inverse[t] = inv;
    vectors(D, [&](int64_t i, auto n) {
      F a = take(x + i, n) * inv;
      if (weight) a *= take(weight + i, n) + how.offset;
      give(y + i, a, n);
    });
  }
}

template <class N>
void normalize_rows_back(const Normed& how, int64_t first, int64_t last, const void* by_y_, const float* inverse, void* by_x_, float* by_weight) {
  const int64_t D = how.D;
  const N* weight = static_cast<const N*>(how.weight);
  for (int64_t t = first; t < last; ++t) {
    const N *x = static_cast<const N*>(how.x) + t * D, *by_y = static_cast<const N*>(by_y_) + t * D;
    N* by_x = static_cast<N*>(by_x_) + t * D;
    const float inv = inverse[t];
    F along{};
    vectors(D, [&](int64_t i, auto n) {
      F g = take(by_y + i, n);
      const F unit = take(x + i, n) * inv;
      if (by_weight) give(by_weight + i, fma(g, unit, take(by_weight + i, n)), n);
      if (weight) g *= take(weight + i, n) + how.offset;
      along = fma(g, unit, along);
    });
    const float mean = sum(along) / static_cast<float>(D);
    vectors(D, [&](int64_t i, auto n) {
      F g = take(by_y + i, n);
      if (weight) g *= take(weight + i, n) + how.offset;
      give(by_x + i, (g - take(x + i, n) * inv * mean) * inv, n);
    });
  }
}

template <class N>
void turn_rows(const Turned& how, int64_t first, int64_t last) {
  const int64_t H = how.H, C = how.C, R = how.R, half = R / 2;
  const float sign = how.back ? -1.0f : 1.0f;
  for (int64_t t = first; t < last; ++t) {
    const float *cos = how.cos + t * R, *sin = how.sin + t * R;
    for (int64_t h = 0; h < H; ++h) {
      const N* x = static_cast<const N*>(how.x) + (t * H + h) * C;
      N* out = static_cast<N*>(how.out) + (t * H + h) * C;
      if (how.adjacent) {
        for (int64_t i = 0; i < R; i += 2) {
          const float a = wide(x[i]), b = wide(x[i + 1]);
          narrow(a * cos[i] + b * (sign * sin[i]), out[i]);
          narrow(b * cos[i + 1] + a * (sign * sin[i + 1]), out[i + 1]);
        }
      } else {
        vectors(half, [&](int64_t i, auto n) {
          const F a = take(x + i, n), b = take(x + half + i, n);
          give(out + i, fma(a, take(cos + i, n), b * (sign * take(sin + i, n))), n);
          give(out + half + i, fma(b, take(cos + half + i, n), a * (sign * take(sin + half + i, n))), n);
        });
      }
      __builtin_memcpy(out + R, x + R, (C - R) * sizeof(N));
    }
  }
}

template <class N>
void gate_numbers(const void* gate_, const void* up_, int64_t n, void* out_) {
  const N *gate = static_cast<const N*>(gate_), *up = static_cast<const N*>(up_);
  N* out = static_cast<N*>(out_);
  vectors(n, [&](int64_t i, auto m) { const F g = take(gate + i, m); give(out + i, g * sigmoid(g) * take(up + i, m), m); });
}

template <class N>
void gate_numbers_back(const void* gate_, const void* up_, const void* by_out_, int64_t n, void* by_gate_, void* by_up_) {
  const N *gate = static_cast<const N*>(gate_), *up = static_cast<const N*>(up_), *by_out = static_cast<const N*>(by_out_);
  N *by_gate = static_cast<N*>(by_gate_), *by_up = static_cast<N*>(by_up_);
  vectors(n, [&](int64_t i, auto m) {
    const F g = take(gate + i, m), by = take(by_out + i, m), s = sigmoid(g);
    give(by_gate + i, by * take(up + i, m) * s * (1.0f + g * (1.0f - s)), m);
    give(by_up + i, by * g * s, m);
  });
}

template <class N>
void surprise_rows(void* logits_, const int64_t* target, int64_t V, int64_t first, int64_t last, float* out) {
  for (int64_t t = first; t < last; ++t) {
    N* logits = static_cast<N*>(logits_) + t * V;
    const float asked = wide(logits[target[t]]);
    F most = all(-INFINITY);
    for (int64_t i = 0; i + kLanes <= V; i += kLanes) most = larger(most, load(logits + i));
    float top = largest(most);
    for (int64_t i = V / kLanes * kLanes; i < V; ++i) top = wide(logits[i]) > top ? wide(logits[i]) : top;
    F shares{};
    float rest = 0.0f;
    for (int64_t i = 0; i + kLanes <= V; i += kLanes) shares += exp(load(logits + i) - top);
    for (int64_t i = V / kLanes * kLanes; i < V; ++i) rest += std::exp(wide(logits[i]) - top);
    const float all_of = sum(shares) + rest, inverse = 1.0f / all_of;
    out[t] = std::log(all_of) + top - asked;
    for (int64_t i = 0; i + kLanes <= V; i += kLanes) keep(logits + i, exp(load(logits + i) - top) * inverse);
    for (int64_t i = V / kLanes * kLanes; i < V; ++i) narrow(std::exp(wide(logits[i]) - top) * inverse, logits[i]);
    narrow(std::exp(asked - top) * inverse - 1.0f, logits[target[t]]);
  }
}

template <class N>
void round_numbers(const float* x, int64_t n, void* out_) {
  N* out = static_cast<N*>(out_);
  vectors(n, [&](int64_t i, auto m) { give(out + i, take(x + i, m), m); });
}

template <class N>
constexpr Learn learn_of() {
  return {normalize_rows<N>, normalize_rows_back<N>, turn_rows<N>, gate_numbers<N>, gate_numbers_back<N>, surprise_rows<N>, round_numbers<N>};
}

}  // namespace
}  // namespace pellucid
