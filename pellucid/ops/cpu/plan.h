// A whole pass of a decoder as a flat list of steps, run by one call: see model/plan.py, which writes the list.
//
// Every step reads and writes buffers of floats, a row a token. It is cut into chunks that whoever is free takes next, and the next step begins when
// all are done. Nothing depends, bitwise, on how many tokens or rows there are, or on how many threads work.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <stdexcept>
#include <utility>
#include <vector>

#include "attend.h"
#include "lanes_table.h"
#include "packed.h"
#include "tiled.h"

namespace pellucid {

// (rows, columns), in panels (see packed.h), dense, row after row, or packed rows as a file has them, that are only looked up.
struct Matrix {
  const uint8_t* panels;  // null: dense or in rows
  int format;
  const void* dense;
  Kind kind;
  int64_t n_rows, n_columns;
  const float* bias;  // (rows,) or null
  const uint8_t* rows = nullptr;
};

struct Buffer {
  int64_t width, stride;  // floats; the stride is whole vectors
  float* data = nullptr;
};

struct Variant;

struct Rope {
  int64_t R;  // channels that turn
  float gain;
  bool adjacent;
};

// What queries are multiplied by at position p: 1 + by * log(1 + floor((p + first) / every)), or log(1 + p) / log_original and never less than 1.
struct Sharpen {
  enum { none, steps, logarithm } kind;
  float every, by, first, log_original;
};

// Norms of heads: a gain of its own for each (`each`), one for all, or all heads normalized together (`whole`).
struct HeadNorm {
  bool there, each, whole, late;
  Norm norm;
};

// Layers that see alike: the tables of their pages are the same.
struct Group {
  Sight sight;
  int64_t n_heads, n_kv_heads, width;
  int table;  // which of the pass's page tables
};

// Where a layer keeps keys and values: pools of pages (P, N, K, C), and of 8-bit numbers their scales.
struct Pools {
  void *k, *v;
  float *k_scale, *v_scale;
};

struct PassRow {
  int64_t n_tokens, start;  // tokens of this pass, and those before
};

// One pass: T tokens of some rows, one row after another.
struct Pass {
  int64_t n_tokens;
  const int64_t* ids;
  const float* embeddings;  // in place of looking the ids up, or null
  std::vector<PassRow> rows;
  std::vector<std::vector<int32_t>> tables;  // of page table i and row b: [i * rows + b]
  std::vector<int64_t> bases;  // the first position that each table holds
  std::vector<const float*> frequencies;  // of rope i and row b, radians a position (R/2,): [i * rows + b]
  const Pools* pools;
  Kind kept;
};

class Plan;

struct Step {
  virtual ~Step() = default;
  virtual void run(Plan& plan) = 0;
  virtual const char* name() const = 0;
};

class Plan {
 public:
  Plan(const std::string& variant, int64_t page);
  ~Plan();
  Plan(const Plan&) = delete;

  // What steps work with. Each returns its number.
  int buffer(int64_t width);
  int matrix(const Matrix& matrix);
  int rope(const Rope& rope);
  int group(const Group& group);

  // Steps, in their order.
  void embed(int matrix, int out, float factor);
  void place(int matrix, int x, int64_t offset);  // x += row (position + offset) of the matrix
  void add(int to, int from, float factor);
  void scale(int x, const float* factor);
  void normalize(int x, int out, const Norm& norm);
  void multiply(int x, std::vector<std::pair<int, int>> matrices_and_outs);
  void heads(int q, int k, int v, int kept, int group, int64_t n_heads, int64_t n_kv_heads, int64_t width, float clip, const HeadNorm& q_norm,
             const HeadNorm& k_norm, const HeadNorm& v_norm, int rope, const Sharpen& sharpen);
  void attend(int q, int out, int kept, int group, const Attend& how);
  void gate(int gate, int up, int out, const Gate& how);

  // Runs all steps, and writes rows (T, width) of the last buffer to out. False where some of them are not numbers.
  bool run(Pass pass, int last, float* out);
  // x (n, D) times a matrix -> out (n, F), scaled and capped.
  void unembed(int matrix, const float* x, int64_t n, float factor, float cap, float* out);
  // Seconds spent in the steps of each kind since the last call, if `measured`.
  std::vector<std::pair<std::string, double>> seconds();
  bool measured = false;

  // For the steps.
  void product(const float* x, int64_t x_stride, int64_t n, const std::vector<std::pair<int, float*>>& outs, const std::vector<int64_t>& strides);
  float* at(int buffer, int64_t token) const { return buffers_[buffer].data + token * buffers_[buffer].stride; }

  const Variant& variant;
  const Lanes& lanes;
  const Tiled* const tiled;  // products with bfloat16 weights, or null: they are then multiplied as floats
  const int64_t page;
  Pass pass;
  std::vector<int64_t> positions, row_of;  // of each token
  std::vector<std::unique_ptr<Pieces>> pieces;  // of each group
  std::vector<std::vector<float>> cos, sin;  // of each rope, (T, R)
  std::vector<Matrix> matrices;
  std::vector<Rope> ropes;
  std::vector<Group> groups;
  std::vector<Buffer> buffers_;

 private:
  bool in_tiles(const Matrix& w) const { return tiled && !w.panels && w.kind == Kind::bf16; }
  uint8_t* in_tiles(const float* x, int64_t x_stride, int64_t n, int64_t D) const;
  int64_t rows_a_chunk(const Matrix& w, int64_t n) const;
  void reserve(int64_t n_tokens);
  void turn();
  void leave_over(const float* x, int64_t D, float* out) const;  // what quantizing a row takes from it

  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<double> spent_;
  int64_t room_ = 0;
};

}  // namespace pellucid
