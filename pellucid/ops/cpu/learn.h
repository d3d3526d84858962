// What training computes besides products: forward and back in one pass over memory each, of float32 or bfloat16 numbers, in float32.
#pragma once
#include <cstdint>

#include "numbers.h"

namespace pellucid {

struct Normed {  // rms norm of rows of D numbers: y = x * inverse * (offset + weight), inverse = (mean(x^2) + eps)^-1/2
  const void *x, *weight;  // weight: or null
  int64_t D;
  float eps, offset;
};

struct Turned {  // the first R channels of each of H heads of a token turn, the others stay
  const void* x;
  void* out;
  const float *cos, *sin;  // (T, R)
  int64_t H, C, R;
  bool adjacent, back;  // back: the other way round, which is how gradients turn
};

// The kernels of one instruction set for numbers of one kind; rows are [first, last).
struct Learn {
  void (*normalize)(const Normed& how, int64_t first, int64_t last, void* y, float* inverse);
  // by_x from the gradient of y; to by_weight (D,) is added.
  void (*normalize_back)(const Normed& how, int64_t first, int64_t last, const void* by_y, const float* inverse, void* by_x, float* by_weight);
  void (*rotate)(const Turned& how, int64_t first, int64_t last);
  // silu(gate) * up of n numbers.
  void (*gate)(const void* gate, const void* up, int64_t n, void* out);
  void (*gate_back)(const void* gate, const void* up, const void* by_out, int64_t n, void* by_gate, void* by_up);
  // Of rows of V logits: the surprise of the target, -log p(target), and in the logits' place the surprise's gradient by them.
  void (*surprise)(void* logits, const int64_t* target, int64_t V, int64_t first, int64_t last, float* out);
  void (*round)(const float* x, int64_t n, void* out);
};

// kind: f32 or bf16.
const Learn& learn_named(const char* variant, Kind kind);

}  // namespace pellucid
