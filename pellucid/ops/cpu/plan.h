// A whole pass of a decoder as a flat list of steps, run by one call: see model/plan.py, which writes the list.
//
// Every step reads and writes buffers of floats, a row a token. It is cut into chunks that whoever is free takes next, and the next step begins when
// all are done. Nothing depends, bitwise, on how many tokens or rows there are, or on how many threads work.
#pragma once
#include <array>
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
  std::vector<float> longest = {};  // of each panel the length of its longest row, once somebody asked what is likeliest
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

// How a router's numbers for the experts become choices: spec.py, Experts.
struct Routing {
  int64_t n_experts, n_active, n_groups, n_active_groups;
  bool sigmoid, best_two, spread, renormalize;
  float router_scale, share_scale;
  const float *correction, *gain;  // (n_experts,) or null
};

// The matrices of one expert; gate < 0 where there is none.
struct Expert {
  int up, gate, down;
};

// The pairs of a token and one of its experts, those of an expert together: what it reads, computes and writes.
struct Visits {
  std::vector<int64_t> begin, place;  // where an expert's pairs begin; where each pair is, of the tokens in their order
  std::array<std::vector<float>, 4> rows;  // read, up, gate, down
};

// Rows of activations, and what becomes of them: out = x @ matrix.T, rows `stride` floats apart.
struct Read {
  const float* x;
  int64_t stride, n;
};
struct Job {
  int matrix, read;
  float* out;
  int64_t stride;
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
  void add_shared(int to, int from, int gate);  // to += from * sigmoid(gate)
  void scale(int x, const float* factor);
  void normalize(int x, int out, const Norm& norm);
  void multiply(int x, std::vector<std::pair<int, int>> matrices_and_outs);
  void heads(int q, int k, int v, int kept, int group, int64_t n_heads, int64_t n_kv_heads, int64_t width, float clip, const HeadNorm& q_norm,
             const HeadNorm& k_norm, const HeadNorm& v_norm, int rope, const Sharpen& sharpen);
  void attend(int q, int out, int kept, int group, const Attend& how);
  void gate(int gate, int up, int out, const Gate& how);
  void route(int logits, const Routing& how);  // every token's experts and shares, for the next step
  void experts(int x, int out, std::vector<Expert> experts, int64_t n_active, int64_t d_ff, bool scale_input, const Gate& how);

  // Runs all steps, and writes rows (T, width) of the last buffer to out. False where some of them are not numbers.
  bool run(Pass pass, int last, float* out);
  // n passes over rows of one token each, who go on with their likeliest ids: of each pass those to out (n, rows). Returns how many passes came to an end:
  // fewer where a row met one of the stops, which is the last to come, or where something is not a number.
  int64_t go_on(Pass pass, int last, int head, int64_t n, const std::vector<int64_t>& stops, int64_t* out);
  // x (n, D) times a matrix -> out (n, F), scaled and capped.
  void unembed(int matrix, const float* x, int64_t n, float factor, float cap, float* out);
  // Of each row of x where the largest of those is, the first of equal ones: the same as if all were there. -1 where not all are finite. Neither
  // scaled nor capped.
  void likeliest(int matrix, const float* x, int64_t n, int64_t* out);
  // Seconds spent in the steps of each kind since the last call, if `measured`.
  std::vector<std::pair<std::string, double>> seconds();
  bool measured = false;

  // For the steps.
  void product(const std::vector<Read>& reads, const std::vector<Job>& jobs);
  float* at(int buffer, int64_t token) const { return buffers_[buffer].data + token * buffers_[buffer].stride; }

  const Variant& variant;
  const Lanes& lanes;
  const Tiled* const tiled;  // products with bfloat16 weights, or null: they are then multiplied as floats
  const int64_t page;
  Pass pass;
  std::vector<int64_t> positions, row_of;  // of each token
  std::vector<std::unique_ptr<Pieces>> pieces;  // of each group
  std::vector<std::vector<float>> cos, sin;  // of each rope, (T, R)
  std::vector<int> chosen;  // of each token its experts, the lowest first, and their shares: (T, A)
  std::vector<float> shares;
  Visits visits;
  std::vector<Matrix> matrices;
  std::vector<Rope> ropes;
  std::vector<Group> groups;
  std::vector<Buffer> buffers_;

 private:
  bool in_tiles(const Matrix& w) const { return tiled && !w.panels && w.kind == Kind::bf16; }
  const uint8_t* in_bytes(const std::vector<Read>& reads, const std::vector<int64_t>& before, int64_t D) const;
  const uint8_t* in_tiles(const std::vector<Read>& reads, const std::vector<int64_t>& before, int64_t D) const;
  int64_t rows_a_chunk(const Matrix& w, int64_t n) const;
  void reserve(int64_t n_tokens);
  void compute();
  bool read(int last, float* out) const;
  void turn();
  const float* with_rest(const float* x, int64_t n, int64_t D) const;
  void measure(Matrix& w) const;
  void likeliest_of_panels(const Matrix& w, const float* x, int64_t n, int64_t* out) const;
  void likeliest_of_all(int matrix, const float* x, int64_t n, int64_t* out);

  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<double> spent_;
  int64_t room_ = 0;
};

}  // namespace pellucid
