#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>

#include "plan_parts.h"
#include "variant.h"

namespace pellucid {
namespace {

const Variant& named(const std::string& name) {
  for (const Variant* variant : variants())
    if (name == variant->name) return *variant;
  throw std::invalid_argument("no kernels " + name + " on this processor");
}

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
  compute();
  return read(last, out);
}

int64_t Plan::go_on(Pass next, int last, int head, int64_t n, const std::vector<int64_t>& stops, int64_t* out) {
  const Team team;
  pass = std::move(next);
  const int64_t B = pass.n_tokens;
  std::vector<float> hidden(B * buffers_[last].width);
  for (int64_t i = 0; i < n; ++i) {
    compute();
    int64_t* const ids = out + i * B;
    if (!read(last, hidden.data())) return i;
    likeliest(head, hidden.data(), B, ids);
    if (std::find(ids, ids + B, -1) != ids + B) return i;
    if (std::find_first_of(ids, ids + B, stops.begin(), stops.end()) != ids + B) return i + 1;
    pass.ids = ids;
    for (PassRow& row : pass.rows) ++row.start;
  }
  return n;
}

// All steps over the pass.
void Plan::compute() {
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
}

bool Plan::read(int last, float* out) const {
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

}  // namespace pellucid
