#include "plan.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>

#include "pool.h"
#include "processor.h"
#include "variant.h"

namespace pellucid {
namespace {

constexpr int64_t kColumnsAtOnce = 1024;  // of a row of numbers that are gated: a microsecond's work
constexpr int64_t kNumbersAtOnce = 4096;  // of the rows that are normalized, turned or quantized in one chunk
constexpr int64_t kTokensAtOnce = 32;  // whose numbers stay in a core's second cache beside a chunk of a dense matrix
constexpr int64_t kDenseBytes = 64 << 10;  // of a dense matrix in one chunk
constexpr int64_t kTiledBytes = 704 << 10;  // the same where many rows of x are multiplied with it in tiles: a third of a core's second cache
constexpr int64_t kTiledRows = 32;  // a chunk's rows are whole multiples of it, but for a matrix's last
constexpr int64_t kTilesAtOnce = 16;  // of a group of rows of x in one chunk, while they are rounded
constexpr int64_t kTiledChunks = 2;  // a thread, at least, of a matrix that is not small

const Variant& named(const std::string& name) {
  for (const Variant* variant : variants())
    if (name == variant->name) return *variant;
  throw std::invalid_argument("no kernels " + name + " on this processor");
}

// Memory that a thread keeps.
template <class T>
T* scratch(int64_t n) {
  static thread_local std::vector<T> held;
  if (static_cast<int64_t>(held.size()) < n) held.resize(n);
  return held.data();
}

// Beginning on a line's boundary. Two kinds: what is read by all threads lies beside what each of them works in.
struct alignas(64) Tile {
  uint8_t bytes[kTileBytes];
};
struct alignas(64) Room {
  uint8_t bytes[kTileBytes];
};

// f(token) for every token: several in one chunk where their rows are short.
template <class Fn>
void each_token(int64_t n, int64_t width, Fn&& f) {
  const int64_t some = std::max<int64_t>(1, kNumbersAtOnce / width);
  parallel_for((n + some - 1) / some, [&](int64_t chunk) {
    for (int64_t t = chunk * some; t < std::min(n, (chunk + 1) * some); ++t) f(t);
  });
}

template <class T>
void widen(const void* from, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = wide(static_cast<const T*>(from)[i]);
}

void keep_short(const float* x, int64_t n, Bf16* to) {
  for (int64_t i = 0; i < n; ++i) narrow(x[i], to[i]);
}

// Heads of n numbers each with a scale: the largest becomes 127, as engine/pages.py has it.
void keep_bytes(const float* x, int64_t n_heads, int64_t n, int8_t* to, float* scales) {
  for (int64_t h = 0; h < n_heads; ++h, x += n, to += n) {
    float most = 0x1p-126f;
    for (int64_t i = 0; i < n; ++i) most = std::max(most, std::fabs(x[i]));
    const float scale = scales[h] = most / 127.0f;
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int8_t>(std::rint(x[i] / scale));
  }
}

void keep(const Lanes& lanes, Kind kind, const float* x, int64_t n_heads, int64_t width, int64_t place, void* pool, float* scales) {
  const int64_t n = n_heads * width;
  switch (kind) {
    case Kind::f32: std::memcpy(static_cast<float*>(pool) + place * n, x, n * sizeof(float)); break;
    case Kind::bf16: keep_short(x, n, static_cast<Bf16*>(pool) + place * n); break;
    case Kind::f16: lanes.halve(x, n, static_cast<F16*>(pool) + place * n); break;
    case Kind::i8: keep_bytes(x, n_heads, width, static_cast<int8_t*>(pool) + place * n, scales + place * n_heads); break;
  }
}

// Row i of a matrix.
void look_up(const Matrix& w, int64_t i, float* out) {
  const int64_t D = w.n_columns;
  if (w.rows) unpack_row(w.format, w.rows + i * (D / kLayouts[w.format].block * kLayouts[w.format].source_bytes), D, out);
  else if (w.panels) unpack(Packed{w.panels, w.format, w.n_rows, D}, &i, 1, out);
  else if (w.kind == Kind::f32) std::memcpy(out, static_cast<const float*>(w.dense) + i * D, D * sizeof(float));
  else if (w.kind == Kind::bf16) widen<Bf16>(static_cast<const Bf16*>(w.dense) + i * D, D, out);
  else widen<F16>(static_cast<const F16*>(w.dense) + i * D, D, out);
}

struct EmbedStep : Step {
  int matrix, out;
  float factor;
  EmbedStep(int matrix, int out, float factor) : matrix(matrix), out(out), factor(factor) {}
  const char* name() const override { return "embed"; }
  void run(Plan& plan) override {
    const int64_t D = plan.buffers_[out].width;
    each_token(plan.pass.n_tokens, D, [&](int64_t t) {
      float* x = plan.at(out, t);
      if (plan.pass.embeddings) std::memcpy(x, plan.pass.embeddings + t * D, D * sizeof(float));
      else look_up(plan.matrices[matrix], plan.pass.ids[t], x);
      if (factor != 1.0f) plan.lanes.scale(x, D, factor, 0.0f);
    });
  }
};

struct PlaceStep : Step {
  int matrix, x;
  int64_t offset;
  PlaceStep(int matrix, int x, int64_t offset) : matrix(matrix), x(x), offset(offset) {}
  const char* name() const override { return "place"; }
  void run(Plan& plan) override {
    const int64_t D = plan.buffers_[x].width;
    each_token(plan.pass.n_tokens, D, [&](int64_t t) {
      float* row = scratch<float>(D);
      look_up(plan.matrices[matrix], plan.positions[t] + offset, row);
      plan.lanes.add(plan.at(x, t), row, D, 1.0f);
    });
  }
};

struct AddStep : Step {
  int to, from;
  float factor;
  AddStep(int to, int from, float factor) : to(to), from(from), factor(factor) {}
  const char* name() const override { return "add"; }
  void run(Plan& plan) override {
    const int64_t D = plan.buffers_[to].width;
    each_token(plan.pass.n_tokens, D, [&](int64_t t) { plan.lanes.add(plan.at(to, t), plan.at(from, t), D, factor); });
  }
};

struct ScaleStep : Step {
  int x;
  const float* factor;
  ScaleStep(int x, const float* factor) : x(x), factor(factor) {}
  const char* name() const override { return "scale"; }
  void run(Plan& plan) override {
    const int64_t D = plan.buffers_[x].width;
    each_token(plan.pass.n_tokens, D, [&](int64_t t) { plan.lanes.scale(plan.at(x, t), D, *factor, 0.0f); });
  }
};

struct NormalizeStep : Step {
  int x, out;
  Norm norm;
  NormalizeStep(int x, int out, const Norm& norm) : x(x), out(out), norm(norm) {}
  const char* name() const override { return "normalize"; }
  void run(Plan& plan) override {
    const int64_t D = plan.buffers_[x].width;
    each_token(plan.pass.n_tokens, D, [&](int64_t t) { plan.lanes.normalize(norm, plan.at(x, t), D, plan.at(out, t)); });
  }
};

struct MultiplyStep : Step {
  int x;
  std::vector<std::pair<int, int>> outs;
  MultiplyStep(int x, std::vector<std::pair<int, int>> outs) : x(x), outs(std::move(outs)) {}
  const char* name() const override { return "multiply"; }
  void run(Plan& plan) override {
    std::vector<std::pair<int, float*>> to;
    std::vector<int64_t> strides;
    for (const auto& [matrix, out] : outs) {
      to.push_back({matrix, plan.at(out, 0)});
      strides.push_back(plan.buffers_[out].stride);
    }
    plan.product(plan.at(x, 0), plan.buffers_[x].stride, plan.pass.n_tokens, to, strides);
  }
};

struct HeadsStep : Step {
  int q, k, v, kept, group;
  int64_t n_heads, n_kv_heads, width;
  float clip;
  HeadNorm q_norm, k_norm, v_norm;
  int rope;
  Sharpen sharpen;
  const char* name() const override { return "heads"; }

  void normalize(const Plan& plan, const HeadNorm& how, float* x, int64_t n) const {
    Norm norm = how.norm;
    if (how.whole) return plan.lanes.normalize(norm, x, n * width, x);
    for (int64_t h = 0; h < n; ++h, x += width) {
      plan.lanes.normalize(norm, x, width, x);
      if (how.each && norm.weight) norm.weight += width;
      if (how.each && norm.bias) norm.bias += width;
    }
  }

  void prepare(const Plan& plan, const HeadNorm& how, float* x, int64_t n, int64_t t) const {
    if (how.there && how.whole) normalize(plan, how, x, n);  // over all heads together: before they are clamped and split
    clamp(x, n);
    if (how.there && !how.whole && !how.late) normalize(plan, how, x, n);
    if (rope >= 0) {
      const Rope& turn = plan.ropes[rope];
      for (int64_t h = 0; h < n; ++h)
        plan.lanes.rotate(x + h * width, plan.cos[rope].data() + t * turn.R, plan.sin[rope].data() + t * turn.R, turn.R, turn.adjacent);
    }
    if (how.there && how.late) normalize(plan, how, x, n);
  }

  void clamp(float* x, int64_t n) const {
    if (clip != 0.0f)
      for (int64_t i = 0; i < n * width; ++i) x[i] = std::min(std::max(x[i], -clip), clip);
  }

  float sharpness(int64_t position) const {
    const float p = static_cast<float>(position);
    if (sharpen.kind == Sharpen::logarithm) return std::max(1.0f, std::log1p(p) / sharpen.log_original);
    return 1.0f + sharpen.by * std::log1p(std::floor((p + sharpen.first) / sharpen.every));
  }

  void run(Plan& plan) override {
    const Pools pools = plan.pass.pools[kept];
    const int table = plan.groups[group].table;
    const int64_t B = static_cast<int64_t>(plan.pass.rows.size());
    each_token(plan.pass.n_tokens, (n_heads + 2 * n_kv_heads) * width, [&](int64_t t) {
      float* q_HC = plan.at(q, t);
      prepare(plan, q_norm, q_HC, n_heads, t);
      if (sharpen.kind != Sharpen::none) plan.lanes.scale(q_HC, n_heads * width, sharpness(plan.positions[t]), 0.0f);
      if (k < 0) return;
      float *k_KC = plan.at(k, t), *v_KC = plan.at(v, t);
      if (v == k) {  // values are what keys are before their norm and rope
        v_KC = scratch<float>(n_kv_heads * width);
        std::memcpy(v_KC, k_KC, n_kv_heads * width * sizeof(float));
      }
      clamp(v_KC, n_kv_heads);
      if (v_norm.there) normalize(plan, v_norm, v_KC, n_kv_heads);
      prepare(plan, k_norm, k_KC, n_kv_heads, t);
      const int64_t i = table * B + plan.row_of[t], at = plan.positions[t] - plan.pass.bases[i];
      const int64_t place = plan.pass.tables[i][at / plan.page] * plan.page + at % plan.page;
      keep(plan.lanes, plan.pass.kept, k_KC, n_kv_heads, width, place, pools.k, pools.k_scale);
      keep(plan.lanes, plan.pass.kept, v_KC, n_kv_heads, width, place, pools.v, pools.v_scale);
    });
  }
};

struct AttendStep : Step {
  int q, out, kept, group;
  Attend how;
  const char* name() const override { return "attend"; }
  void run(Plan& plan) override {
    const Pools pools = plan.pass.pools[kept];
    Attend a = how;
    a.q = plan.at(q, 0), a.out = plan.at(out, 0), a.kind = Kind::f32;
    a.q_stride = plan.buffers_[q].stride, a.out_stride = plan.buffers_[out].stride;
    a.k = {pools.k, pools.k_scale, plan.pass.kept, how.d_head};
    a.v = {pools.v, pools.v_scale, plan.pass.kept, how.d_head};
    Pieces& pieces = *plan.pieces[group];
    pieces.restart();
    const int64_t room = pieces.scratch(a);
    parallel_for(pieces.size(), [&](int64_t i) { plan.lanes.attend(a, pieces, i, scratch<float>(room)); });
  }
};

struct GateStep : Step {
  int gate, up, out;
  Gate how;
  GateStep(int gate, int up, int out, const Gate& how) : gate(gate), up(up), out(out), how(how) {}
  const char* name() const override { return "gate"; }
  void run(Plan& plan) override {
    const int64_t F = plan.buffers_[gate].width, parts = (F + kColumnsAtOnce - 1) / kColumnsAtOnce;
    parallel_for(plan.pass.n_tokens * parts, [&](int64_t chunk) {
      const int64_t t = chunk / parts, first = chunk % parts * kColumnsAtOnce, n = std::min(kColumnsAtOnce, F - first);
      plan.lanes.gate(how, plan.at(gate, t) + first, up < 0 ? nullptr : plan.at(up, t) + first, n, plan.at(out, t) + first);
    });
  }
};

}  // namespace

Plan::Plan(const std::string& name, int64_t page) : variant(named(name)), lanes(lanes_named(name.c_str())), tiled(tiled_named(name.c_str())), page(page) {}

Plan::~Plan() {
  for (Buffer& buffer : buffers_) std::free(buffer.data);
}

int Plan::buffer(int64_t width) {
  buffers_.push_back({width, padded(width)});
  return static_cast<int>(buffers_.size()) - 1;
}

int Plan::matrix(const Matrix& matrix) {
  matrices.push_back(matrix);
  return static_cast<int>(matrices.size()) - 1;
}

int Plan::rope(const Rope& rope) {
  ropes.push_back(rope);
  return static_cast<int>(ropes.size()) - 1;
}

int Plan::group(const Group& group) {
  groups.push_back(group);
  return static_cast<int>(groups.size()) - 1;
}

void Plan::embed(int matrix, int out, float factor) { steps_.push_back(std::make_unique<EmbedStep>(matrix, out, factor)); }
void Plan::place(int matrix, int x, int64_t offset) { steps_.push_back(std::make_unique<PlaceStep>(matrix, x, offset)); }
void Plan::add(int to, int from, float factor) { steps_.push_back(std::make_unique<AddStep>(to, from, factor)); }
void Plan::scale(int x, const float* factor) { steps_.push_back(std::make_unique<ScaleStep>(x, factor)); }
void Plan::normalize(int x, int out, const Norm& norm) { steps_.push_back(std::make_unique<NormalizeStep>(x, out, norm)); }
void Plan::multiply(int x, std::vector<std::pair<int, int>> outs) { steps_.push_back(std::make_unique<MultiplyStep>(x, std::move(outs))); }
void Plan::gate(int gate, int up, int out, const Gate& how) { steps_.push_back(std::make_unique<GateStep>(gate, up, out, how)); }

void Plan::heads(int q, int k, int v, int kept, int group, int64_t n_heads, int64_t n_kv_heads, int64_t width, float clip, const HeadNorm& q_norm,
                 const HeadNorm& k_norm, const HeadNorm& v_norm, int rope, const Sharpen& sharpen) {
  auto step = std::make_unique<HeadsStep>();
  step->q = q, step->k = k, step->v = v, step->kept = kept, step->group = group, step->n_heads = n_heads, step->n_kv_heads = n_kv_heads;
  step->width = width, step->clip = clip, step->q_norm = q_norm, step->k_norm = k_norm, step->v_norm = v_norm, step->rope = rope, step->sharpen = sharpen;
  steps_.push_back(std::move(step));
}

void Plan::attend(int q, int out, int kept, int group, const Attend& how) {
  auto step = std::make_unique<AttendStep>();
  step->q = q, step->out = out, step->kept = kept, step->group = group, step->how = how;
  steps_.push_back(std::move(step));
}

void Plan::reserve(int64_t n_tokens) {
  if (n_tokens <= room_) return;
  for (Buffer& buffer : buffers_) {
    std::free(buffer.data);
    buffer.data = static_cast<float*>(std::aligned_alloc(64, n_tokens * buffer.stride * sizeof(float)));
    if (!buffer.data) {
      room_ = 0;
      throw std::bad_alloc();
    }
  }
  room_ = n_tokens;
}

// Every rope's cosines and sines, the sine of a pair's first channel negated: see model/rope.py, tables.
void Plan::turn() {
  const int64_t T = pass.n_tokens;
  cos.resize(ropes.size()), sin.resize(ropes.size());
  for (size_t i = 0; i < ropes.size(); ++i) {
    const Rope& rope = ropes[i];
    const int64_t R = rope.R, P = R / 2;
    cos[i].resize(T * R), sin[i].resize(T * R);
    each_token(T, 8 * R, [&](int64_t t) {
      const float* frequencies = pass.frequencies[i * pass.rows.size() + row_of[t]];
      float *c = cos[i].data() + t * R, *s = sin[i].data() + t * R;
      for (int64_t p = 0; p < P; ++p) {
        const float angle = static_cast<float>(positions[t]) * frequencies[p], x = std::cos(angle) * rope.gain, y = std::sin(angle) * rope.gain;
        const int64_t one = rope.adjacent ? 2 * p : p, other = rope.adjacent ? 2 * p + 1 : P + p;
        c[one] = c[other] = x, s[one] = -y, s[other] = y;
      }
    });
  }
}

bool Plan::run(Pass next, int last, float* out) {
  const Team team;  // from here on this thread's: two that share a plan wait for each other
  pass = std::move(next);
  reserve(pass.n_tokens);
  const int64_t B = static_cast<int64_t>(pass.rows.size());
  positions.clear(), row_of.clear();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < pass.rows[b].n_tokens; ++i) positions.push_back(pass.rows[b].start + i), row_of.push_back(b);
  turn();
  pieces.clear();
  for (const Group& group : groups) {
    std::vector<AttendRow> rows;
    for (int64_t b = 0, query = 0; b < B; query += pass.rows[b++].n_tokens) {
      const int64_t i = group.table * B + b;
      rows.push_back({pass.tables[i].data(), pass.bases[i], pass.bases[i], pass.rows[b].start + pass.rows[b].n_tokens, pass.rows[b].n_tokens, query});
    }
    pieces.push_back(std::make_unique<Pieces>(std::move(rows), group.sight, group.n_heads, group.n_kv_heads, group.width, Pool::get().size()));
  }
  if (!measured) {
    for (auto& step : steps_) step->run(*this);
  } else {
    spent_.resize(steps_.size());
    for (size_t i = 0; i < steps_.size(); ++i) {
      const auto begin = std::chrono::steady_clock::now();
      steps_[i]->run(*this);
      spent_[i] += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
  }
  const int64_t D = buffers_[last].width;
  float sum = 0.0f;  // a number times zero is zero, and nothing else is
  for (int64_t t = 0; t < pass.n_tokens; ++t) {
    std::memcpy(out + t * D, at(last, t), D * sizeof(float));
    for (int64_t d = 0; d < D; ++d) sum += out[t * D + d] * 0.0f;
  }
  return sum == 0.0f;
}

std::vector<std::pair<std::string, double>> Plan::seconds() {
  std::map<std::string, double> sums;
  for (size_t i = 0; i < spent_.size(); ++i) sums[steps_[i]->name()] += spent_[i];
  spent_.assign(steps_.size(), 0.0);
  return {sums.begin(), sums.end()};
}

// Rows of a dense matrix in one chunk.
int64_t Plan::rows_a_chunk(const Matrix& w, int64_t n) const {
  const int64_t row_bytes = w.n_columns * (w.kind == Kind::f32 ? 4 : 2);
  if (!in_tiles(w)) return std::max<int64_t>(1, kDenseBytes / row_bytes);
  const int64_t most = (n > kTileRows ? kTiledBytes : kDenseBytes) / row_bytes, even = w.n_rows / (kTiledChunks * Pool::get().size());
  return std::max(kTiledRows, std::min(most, even) / kTiledRows * kTiledRows);
}

// n rows of x times several matrices of as many columns, all in one go.
void Plan::product(const float* x, int64_t x_stride, int64_t n, const std::vector<std::pair<int, float*>>& outs, const std::vector<int64_t>& strides) {
  const int64_t D = matrices[outs[0].first].n_columns;
  uint8_t *quantized = nullptr, *packed = nullptr;
  std::vector<int64_t> ends;  // of each matrix's chunks
  for (const auto& [index, out] : outs) {
    const Matrix& w = matrices[index];
    const int64_t begin = ends.empty() ? 0 : ends.back();
    if (!w.panels) {
      const int64_t rows = rows_a_chunk(w, n);
      ends.push_back(begin + (w.n_rows + rows - 1) / rows);
      if (in_tiles(w) && !packed) packed = in_tiles(x, x_stride, n, D);
      continue;
    }
    ends.push_back(begin + n_chunks(Packed{w.panels, w.format, w.n_rows, w.n_columns}, n));
    if (quantized) continue;
    quantized = scratch<uint8_t>(quantized_bytes(n, D));
    each_token(n, D, [&](int64_t t) {
      const int64_t group = t / kRows * kRows, size = std::min<int64_t>(kRows, n - group);
      lanes.quantize_row(x + t * x_stride, D, static_cast<int>(t - group), static_cast<int>(size), quantized + quantized_bytes(group, D));
    });
  }
  parallel_ranges(ends.back(), [&](int64_t chunk) {
    const size_t i = std::upper_bound(ends.begin(), ends.end(), chunk) - ends.begin();
    chunk -= i ? ends[i - 1] : 0;
    const Matrix& w = matrices[outs[i].first];
    float* out = outs[i].second;
    if (w.panels)
      return multiply_chunk(variant, Packed{w.panels, w.format, w.n_rows, w.n_columns}, quantized, n, w.bias, out, strides[i], chunk);
    const int64_t rows = rows_a_chunk(w, n), first = chunk * rows, last = std::min(first + rows, w.n_rows);
    if (in_tiles(w))
      tiled->multiply(static_cast<const Bf16*>(w.dense), D, first, last, packed, n, out, strides[i],
                      scratch<Room>(tiled_scratch_bytes(D) / kTileBytes)->bytes);
    else
      for (int64_t t = 0; t < n; t += kTokensAtOnce)
        lanes.multiply_dense(w.dense, w.kind, D, first, last, x + t * x_stride, x_stride, std::min(kTokensAtOnce, n - t), out + t * strides[i], strides[i]);
    if (w.bias)
      for (int64_t t = 0; t < n; ++t)
        for (int64_t f = first; f < last; ++f) out[t * strides[i] + f] += w.bias[f];
  });
}

// n rows of x as tiles of bfloat16, in memory of this thread.
uint8_t* Plan::in_tiles(const float* x, int64_t x_stride, int64_t n, int64_t D) const {
  uint8_t* out = scratch<Tile>(tiled_bytes(n, D) / kTileBytes)->bytes;
  const int64_t N = tiles(D), parts = (N + kTilesAtOnce - 1) / kTilesAtOnce;
  parallel_for(row_tiles(n) * parts, [&](int64_t chunk) {
    const int64_t group = chunk / parts, first = chunk % parts * kTilesAtOnce, rows = std::min(kTileRows, n - group * kTileRows);
    tiled->pack(x + group * kTileRows * x_stride, x_stride, static_cast<int>(rows), D, first, std::min(first + kTilesAtOnce, N), out + (group * N + first) * kTileBytes);
  });
  return out;
}

// Of packed weights times x and what its rounding to 8 bits leaves over: model/decoder.py, Unembed.
void Plan::unembed(int matrix, const float* x, int64_t n, float factor, float cap, float* out) {
  const Team team;
  const Matrix& w = matrices[matrix];
  const int64_t D = w.n_columns, V = w.n_rows, parts = (V + kColumnsAtOnce - 1) / kColumnsAtOnce;
  auto each_part = [&](int64_t rows, auto&& f) {
    parallel_for(rows * parts, [&](int64_t chunk) { f(chunk / parts, chunk % parts * kColumnsAtOnce, std::min(kColumnsAtOnce, V - chunk % parts * kColumnsAtOnce)); });
  };
  if (!w.panels) {
    product(x, D, n, {{matrix, out}}, {V});
    if (factor != 1.0f || cap != 0.0f) each_part(n, [&](int64_t t, int64_t f, int64_t size) { lanes.scale(out + t * V + f, size, factor, cap); });
    return;
  }
  for (int64_t first = 0; first < n; first += kTokensAtOnce, x += kTokensAtOnce * D, out += kTokensAtOnce * V) {
    const int64_t some = std::min(kTokensAtOnce, n - first);
    float *rows = scratch<float>(2 * some * (D + V)), *twice = rows + 2 * some * D;  // every token's two rows lie side by side
    each_token(some, D, [&](int64_t t) {
      std::memcpy(rows + 2 * t * D, x + t * D, D * sizeof(float));
      leave_over(x + t * D, D, rows + (2 * t + 1) * D);
    });
    product(rows, D, 2 * some, {{matrix, twice}}, {V});
    each_part(some, [&](int64_t t, int64_t f, int64_t size) {
      float *to = out + t * V + f, *rest = twice + (2 * t + 1) * V + f;
      std::memcpy(to, twice + 2 * t * V + f, size * sizeof(float));
      if (w.bias) lanes.add(rest, w.bias + f, size, -1.0f);  // it is in both
      lanes.add(to, rest, size, 1.0f);
      if (factor != 1.0f || cap != 0.0f) lanes.scale(to, size, factor, cap);
    });
  }
}

void Plan::leave_over(const float* x, int64_t D, float* out) const {
  uint8_t* quantized = scratch<uint8_t>(quantized_bytes(1, D));
  lanes.quantize_row(x, D, 0, 1, quantized);
  for (int64_t d = 0; d < D; d += kColumns, quantized += kRowBytes) {
    float scale;
    std::memcpy(&scale, quantized + kColumns, sizeof scale);
    for (int64_t i = 0; i < kColumns; ++i) out[d + i] = x[d + i] - static_cast<float>(reinterpret_cast<const int8_t*>(quantized)[i]) * scale;
  }
}

}  // namespace pellucid
