// What is computed in vectors of floats, for one instruction set: each compiled in a file of its own, with flags of its own (see variant.h).
#pragma once
#include <cstdint>

#include "attend.h"
#include "numbers.h"
#include "stored.h"

namespace pellucid {

struct Norm {
  bool layer;  // else rms
  float eps, offset;
  const float *weight, *bias;  // or null
};

enum class Act : int { silu, gelu, gelu_tanh, gelu_quick, relu, relu2, linear };  // in the order of ops/native_attend.py's names

struct Gate {
  Act act;
  float slope, limit, up_offset;  // limit: infinite where there is none
};

// The largest number and the first place of it; place -1 where not all of them are finite.
struct Largest {
  float number;
  int64_t place;
};

struct Lanes {
  const char* name;  // of the variant
  // Piece i of a pass, in pieces.scratch() floats of the thread's own.
  void (*attend)(const Attend& how, Pieces& pieces, int64_t i, float* scratch);
  // n numbers, normalized in float32 and rounded once; out may be x.
  void (*normalize)(const Norm& norm, const float* x, int64_t n, float* out);
  // Turns the first R channels of a head, in place: x * cos + partner * sin.
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t R, bool adjacent);
  // act(gate) * (up + up_offset), or act(gate) where up is null; out may be either.
  void (*gate)(const Gate& how, const float* gate, const float* up, int64_t n, float* out);
  // x * factor, and then within (-cap, cap) where cap is not 0; in place.
  void (*scale)(float* x, int64_t n, float factor, float cap);
  // to += from * factor.
  void (*add)(float* to, const float* from, int64_t n, float factor);
  // Of n numbers, 1 or more: see Largest.
  Largest (*largest)(const float* x, int64_t n);
  // n numbers as float16: rounded to the nearest, ties to even, and no number where one is past its end (see engine/pages.py, pack16).
  void (*halve)(const float* x, int64_t n, F16* out);
  // Row m of a group of n (see packed.h): the same bytes as Variant::quantize.
  void (*quantize_row)(const float* x, int64_t n_columns, int m, int n, uint8_t* out);
  // Rows [first, last) of a dense matrix (F, D) times n rows of x -> out[row * out_stride + f]. Every number is one sum, whatever n is.
  void (*multiply_dense)(const void* weight, Kind kind, int64_t n_columns, int64_t first, int64_t last, const float* x, int64_t x_stride, int64_t n,
                         float* out, int64_t out_stride);
  // Rows [first, last) of a matrix that is not plain numbers, one after another; up to kPast numbers more are written.
  void (*unpack_rows)(const Stored& w, int64_t first, int64_t last, float* out);
};

const Lanes& lanes_named(const char* variant);  // the portable ones for a name that has none

}  // namespace pellucid
