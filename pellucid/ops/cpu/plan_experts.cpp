// A plan's steps of a mixture: which experts a token visits, and what they write. The decoder's own text is model/experts.py and ops/reference.py, route.
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "plan_parts.h"

namespace pellucid {
namespace {

constexpr int64_t kPairs = 4096;  // of a token and an expert in one go: what they read and write is tens of megabytes
constexpr float kOut = -std::numeric_limits<float>::infinity();

// The n best of numbers `every` apart, the best first; of equals the first. What is no number is the largest, as torch has it.
void best(const float* x, int64_t size, int64_t n, std::vector<int>& out) {
  out.resize(size);
  std::iota(out.begin(), out.end(), 0);
  const auto before = [&](int a, int b) {
    const bool none_a = x[a] != x[a], none_b = x[b] != x[b];
    if (none_a || none_b) return none_a != none_b ? none_a : a < b;
    return x[a] != x[b] ? x[a] > x[b] : a < b;
  };
  std::partial_sort(out.begin(), out.begin() + n, out.end(), before);
  out.resize(n);
}

struct RouteStep : Step {
  int logits;
  Routing how;
  RouteStep(int logits, const Routing& how) : logits(logits), how(how) {}
  const char* name() const override { return "route"; }

  void score(const float* x, float* out) const {
    const int64_t X = how.n_experts;
    float most = kOut, sum = 0.0f;
    for (int64_t e = 0; e < X; ++e) most = std::max(most, out[e] = x[e] * how.router_scale);
    for (int64_t e = 0; e < X; ++e) sum += out[e] = how.sigmoid ? 1.0f / (1.0f + std::exp(-out[e])) : std::exp(out[e] - most);
    if (!how.sigmoid)
      for (int64_t e = 0; e < X; ++e) out[e] /= sum;
  }

  // Takes out the scores of groups that are not active, and of each group all but its share of the best where experts are to be spread.
  void in_groups(float* score, std::vector<int>& order) const {
    const int64_t G = how.n_groups, size = how.n_experts / G;
    if (how.n_active_groups < G) {
      std::vector<float> of(G);
      for (int64_t g = 0; g < G; ++g) {
        best(score + g * size, size, how.best_two ? 2 : 1, order);
        for (int e : order) of[g] += score[g * size + e];
      }
      best(of.data(), G, how.n_active_groups, order);
      for (int64_t g = 0; g < G; ++g)
        if (std::find(order.begin(), order.end(), g) == order.end()) std::fill_n(score + g * size, size, kOut);
    }
    if (!how.spread) return;
    for (int64_t g = 0; g < G; ++g) {
      best(score + g * size, size, how.n_active / G, order);
      for (int64_t e = 0; e < size; ++e)
        if (std::find(order.begin(), order.end(), e) == order.end()) score[g * size + e] = kOut;
    }
  }

  void run(Plan& plan) override {
    const int64_t T = plan.pass.n_tokens, X = how.n_experts, A = how.n_active;
    plan.chosen.resize(T * A), plan.shares.resize(T * A);
    each_token(T, 16 * X, [&](int64_t t) {
      std::vector<float> score(X);
      std::vector<int> order;
      this->score(plan.at(logits, t), score.data());
      std::vector<float> choice = score;
      if (how.correction)
        for (int64_t e = 0; e < X; ++e) choice[e] += how.correction[e];
      in_groups(choice.data(), order);
      best(choice.data(), X, A, order);
      float sum = 0.0f;
      for (int e : order) sum += score[e];
      std::sort(order.begin(), order.end());
      for (int64_t a = 0; a < A; ++a) {
        const int e = plan.chosen[t * A + a] = order[a];
        plan.shares[t * A + a] = (how.renormalize ? score[e] / sum : score[e]) * how.share_scale * (how.gain ? how.gain[e] : 1.0f);
      }
    });
  }
};

struct ExpertsStep : Step {
  int x, out;
  std::vector<Expert> experts;
  int64_t A, F;
  bool scale_input;
  Gate how;
  const char* name() const override { return "experts"; }

  static float* room(std::vector<float>& of, int64_t n) {
    if (static_cast<int64_t>(of.size()) < n) of.resize(n);
    return of.data();
  }

  void run(Plan& plan) override {
    const int64_t T = plan.pass.n_tokens, some = std::max<int64_t>(1, kPairs / A);
    for (int64_t t = 0; t < T; t += some) of_tokens(plan, t, std::min(some, T - t));
  }

  // The rows of each expert one after another, in the order of their tokens.
  void sort(const int* chosen, int64_t n, Visits& visits) const {
    auto& [begin, place, rows] = visits;
    begin.assign(experts.size() + 1, 0), place.resize(n);
    for (int64_t p = 0; p < n; ++p) ++begin[chosen[p] + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<int64_t> next = begin;
    for (int64_t p = 0; p < n; ++p) place[p] = next[chosen[p]]++;
  }

  void of_tokens(Plan& plan, int64_t first, int64_t n) {
    const int64_t D = plan.buffers_[x].width, N = n * A, Ds = padded(D), Fs = padded(F);
    const float* shares = plan.shares.data() + first * A;
    sort(plan.chosen.data() + first * A, N, plan.visits);
    const auto& [begin, place, _] = plan.visits;
    auto& [read, up, gate, down] = plan.visits.rows;
    const bool one = n == 1 && !scale_input;  // which all of its experts read where it lies
    float* x_ND = one ? plan.at(x, first) : room(read, N * Ds);
    if (!one)
      each_token(N, D, [&](int64_t p) {
        float* to = x_ND + place[p] * Ds;
        std::memcpy(to, plan.at(x, first + p / A), D * sizeof(float));
        if (scale_input) plan.lanes.scale(to, D, shares[p], 0.0f);
      });
    float *up_NF = room(up, N * Fs), *down_ND = room(down, N * Ds);
    const bool gated = experts[0].gate >= 0;
    float* gate_NF = gated ? room(gate, N * Fs) : up_NF;
    std::vector<Read> reads, gates;
    std::vector<Job> jobs, downs;
    for (size_t e = 0; e < experts.size(); ++e) {
      const int64_t at = begin[e], rows = begin[e + 1] - at;
      if (!rows) continue;
      if (!one || reads.empty()) reads.push_back({x_ND + (one ? 0 : at * Ds), Ds, rows});
      const int r = static_cast<int>(reads.size()) - 1, g = static_cast<int>(gates.size());
      jobs.push_back({experts[e].up, r, up_NF + at * Fs, Fs});
      if (gated) jobs.push_back({experts[e].gate, r, gate_NF + at * Fs, Fs});
      gates.push_back({up_NF + at * Fs, Fs, rows});
      downs.push_back({experts[e].down, g, down_ND + at * Ds, Ds});
    }
    plan.product(reads, jobs);
    each_part(N, F, [&](int64_t p, int64_t c, int64_t size) {
      plan.lanes.gate(how, gate_NF + p * Fs + c, gated ? up_NF + p * Fs + c : nullptr, size, up_NF + p * Fs + c);
    });
    plan.product(gates, downs);
    each_part(n, D, [&](int64_t t, int64_t c, int64_t size) {  // a token's experts by their numbers, whoever stands beside it
      float* to = plan.at(out, first + t) + c;
      std::memset(to, 0, size * sizeof(float));
      for (int64_t p = t * A; p < (t + 1) * A; ++p) plan.lanes.add(to, down_ND + place[p] * Ds + c, size, scale_input ? 1.0f : shares[p]);
    });
  }
};

}  // namespace

void Plan::route(int logits, const Routing& how) { steps_.push_back(std::make_unique<RouteStep>(logits, how)); }

void Plan::experts(int x, int out, std::vector<Expert> experts, int64_t n_active, int64_t d_ff, bool scale_input, const Gate& how) {
  auto step = std::make_unique<ExpertsStep>();
  step->x = x, step->out = out, step->experts = std::move(experts), step->A = n_active, step->F = d_ff, step->scale_input = scale_input, step->how = how;
  steps_.push_back(std::move(step));
}

}  // namespace pellucid
