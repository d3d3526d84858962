// Attention whose gradient is wanted: causal, over whole rows, in a processor's tiles of bfloat16. Compiled in a file of its own (see variant.h).
//
// Scores are never kept: back makes them again, block by block, from the logarithm of each query's sum. https://arxiv.org/abs/2307.08691, section 3.1.
// Blocks of scores stand with keys as rows and queries as columns, so that a query is a lane: its largest score and its sum take no step across lanes, and
// a block rounded to bfloat16 lies as both products of back want it.
#pragma once
#include <cstdint>

#include "numbers.h"

namespace pellucid {

struct AttendLearn {
  const Bf16 *q, *k, *v;  // (T, H, C), (T, K, C), (T, K, V)
  Bf16* out;              // (T, H, V)
  float* log_sums;        // (T, H)
  int64_t H, K, C, V;
  float scale;
  int64_t window;  // a query sees keys in (t - window, t]; 0: all before it
  const Bf16* by_out;  // back: the gradient of out, and where those of q, k and v go
  Bf16 *by_q, *by_k, *by_v;
};

struct AttendTiles {
  // Bytes a thread works in, on a line's boundary, for rows of at most T tokens.
  int64_t (*scratch_bytes)(const AttendLearn& how, int64_t T, bool back);
  // Tokens [first, first + T) are a row. One key head of it with the queries of its group: of part `part` of n_parts of the queries in turn.
  void (*forward)(const AttendLearn& how, int64_t first, int64_t T, int64_t head, int64_t part, int64_t n_parts, uint8_t* scratch);
  void (*back)(const AttendLearn& how, int64_t first, int64_t T, int64_t head, uint8_t* scratch);
};

const AttendTiles* attend_tiles();  // null where this processor has none

}  // namespace pellucid
