// The steps of a plan but for those of experts (plan_experts.cpp): each reads and writes buffers, a row a token.
#include <cmath>
#include <cstring>

#include "plan_parts.h"

namespace pellucid {
namespace {

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

// f(plan, token, D) for every token, where D is the width of the buffer that is written.
template <class Fn>
struct EachToken : Step {
  const char* what;
  int out;
  Fn f;
  EachToken(const char* what, int out, Fn f) : what(what), out(out), f(f) {}
  const char* name() const override { return what; }
  void run(Plan& plan) override {
    const int64_t D = plan.buffers_[out].width;
    each_token(plan.pass.n_tokens, D, [&](int64_t t) { f(plan, t, D); });
  }
};

template <class Fn>
std::unique_ptr<Step> tokenwise(const char* what, int out, Fn f) {
  return std::make_unique<EachToken<Fn>>(what, out, f);
}

struct MultiplyStep : Step {
  int x;
  std::vector<std::pair<int, int>> outs;
  MultiplyStep(int x, std::vector<std::pair<int, int>> outs) : x(x), outs(std::move(outs)) {}
  const char* name() const override { return "multiply"; }
  void run(Plan& plan) override {
    std::vector<Job> jobs;
    for (const auto& [matrix, out] : outs) jobs.push_back({matrix, 0, plan.at(out, 0), plan.buffers_[out].stride});
    plan.product({{plan.at(x, 0), plan.buffers_[x].stride, plan.pass.n_tokens}}, jobs);
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
    each_part(plan.pass.n_tokens, plan.buffers_[gate].width, [&](int64_t t, int64_t first, int64_t n) {
      plan.lanes.gate(how, plan.at(gate, t) + first, up < 0 ? nullptr : plan.at(up, t) + first, n, plan.at(out, t) + first);
    });
  }
};

}  // namespace

void Plan::embed(int matrix, int out, float factor) {
  steps_.push_back(tokenwise("embed", out, [=](Plan& plan, int64_t t, int64_t D) {
    float* x = plan.at(out, t);
    if (plan.pass.embeddings) std::memcpy(x, plan.pass.embeddings + t * D, D * sizeof(float));
    else look_up(plan.matrices[matrix], plan.pass.ids[t], x);
    if (factor != 1.0f) plan.lanes.scale(x, D, factor, 0.0f);
  }));
}

void Plan::place(int matrix, int x, int64_t offset) {
  steps_.push_back(tokenwise("place", x, [=](Plan& plan, int64_t t, int64_t D) {
    float* row = scratch<float>(D);
    look_up(plan.matrices[matrix], plan.positions[t] + offset, row);
    plan.lanes.add(plan.at(x, t), row, D, 1.0f);
  }));
}

void Plan::add(int to, int from, float factor) {
  steps_.push_back(tokenwise("add", to, [=](Plan& plan, int64_t t, int64_t D) { plan.lanes.add(plan.at(to, t), plan.at(from, t), D, factor); }));
}

void Plan::add_shared(int to, int from, int gate) {
  steps_.push_back(tokenwise("add", to, [=](Plan& plan, int64_t t, int64_t D) {
    plan.lanes.add(plan.at(to, t), plan.at(from, t), D, 1.0f / (1.0f + std::exp(-*plan.at(gate, t))));
  }));
}

void Plan::scale(int x, const float* factor) {
  steps_.push_back(tokenwise("scale", x, [=](Plan& plan, int64_t t, int64_t D) { plan.lanes.scale(plan.at(x, t), D, *factor, 0.0f); }));
}

void Plan::normalize(int x, int out, const Norm& norm) {
  steps_.push_back(tokenwise("normalize", out, [=](Plan& plan, int64_t t, int64_t D) { plan.lanes.normalize(norm, plan.at(x, t), D, plan.at(out, t)); }));
}

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

}  // namespace pellucid
