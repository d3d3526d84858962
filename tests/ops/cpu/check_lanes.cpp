// Attention, the work on rows and a plan by every variant, in memory that is as large as it must be and no larger. See check.cpp.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "plan.h"
#include "pool.h"
#include "processor.h"
#include "variant.h"

using namespace pellucid;

namespace {

constexpr int64_t kPage = 4, kHeads = 6, kKvHeads = 3, kWidth = 19, kValue = 21, kExperts = 6, kInner = 23;

int n_failed = 0;

void expect(bool fact, const char* what, const char* variant) {
  if (fact) return;
  ++n_failed;
  std::printf("failed: %s %s\n", what, variant);
}

std::vector<float> random(int64_t n, std::mt19937& noise) {
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (float& x : out) x = normal(noise);
  return out;
}

// Pools of 8-bit numbers with a scale for each head and token, the most that a pool can be.
struct Kept {
  std::vector<int8_t> numbers;
  std::vector<float> scales;
  int64_t width;

  Kept(int64_t n_pages, int64_t width, std::mt19937& noise) : numbers(n_pages * kPage * kKvHeads * width), scales(n_pages * kPage * kKvHeads), width(width) {
    for (int8_t& x : numbers) x = static_cast<int8_t>(noise());
    for (float& x : scales) x = 0.01f + static_cast<float>(noise() % 100) / 20000;
  }
  double at(int64_t page, int64_t token, int64_t head, int64_t c) const {
    const int64_t key = (page * kPage + token) * kKvHeads + head;
    return double(scales[key]) * numbers[key * width + c];
  }
};

void check_attention(const char* variant, std::mt19937& noise) {
  const Lanes& lanes = lanes_named(variant);
  const int64_t lengths[] = {1, 300, 37}, queries[] = {1, 2, 37}, n_pages = 200;
  const Kept k(n_pages, kWidth, noise), v(n_pages, kValue, noise);
  std::vector<int32_t> table(n_pages);
  for (int32_t i = 0; i < n_pages; ++i) table[i] = (i * 37) % static_cast<int32_t>(n_pages);
  std::vector<AttendRow> rows;
  int64_t T = 0, page = 0;
  for (int b = 0; b < 3; ++b) {
    rows.push_back({table.data() + page, 0, 0, lengths[b], queries[b], T});
    T += queries[b], page += (lengths[b] + kPage - 1) / kPage;
  }
  const std::vector<float> q = random(T * kHeads * kWidth, noise);
  std::vector<float> first;
  for (int n_threads : {1, 3}) {
    Pool::get().resize(n_threads);
    std::vector<float> out(T * kHeads * kValue);
    const Attend how{q.data(), out.data(), Kind::f32, kHeads * kWidth, kHeads * kValue, {k.numbers.data(), k.scales.data(), Kind::i8, kWidth},
                     {v.numbers.data(), v.scales.data(), Kind::i8, kValue}, kHeads, kKvHeads, kWidth, kPage, 0.1f, 0.0f, {270, 0, false, true}, nullptr, nullptr};
    Pieces pieces(rows, how.sight, kHeads, kKvHeads, kValue, n_threads);
    parallel_for(pieces.size(), [&](int64_t i) {
      const std::unique_ptr<float[]> scratch(new float[pieces.scratch(how)]);
      lanes.attend(how, pieces, i, scratch.get());
    });
    if (first.empty()) first = out;
    expect(out == first, "attention is the same by any number of threads", variant);
  }
  double worst = 0;
  for (const AttendRow& row : rows)
    for (int64_t i = 0; i < row.n_queries; ++i)
      for (int64_t h = 0; h < kHeads; ++h) {
        const int64_t position = row.end - row.n_queries + i;
        double whole = 0, sums[kValue] = {};
        for (int64_t s = std::max<int64_t>(0, position - 269); s <= position; ++s) {
          double score = 0;
          for (int64_t c = 0; c < kWidth; ++c) score += q[((row.query + i) * kHeads + h) * kWidth + c] * k.at(row.table[s / kPage], s % kPage, h / 2, c);
          const double share = std::exp(score * 0.1);
          whole += share;
          for (int64_t c = 0; c < kValue; ++c) sums[c] += share * v.at(row.table[s / kPage], s % kPage, h / 2, c);
        }
        for (int64_t c = 0; c < kValue; ++c) worst = std::max(worst, std::fabs(sums[c] / whole - first[((row.query + i) * kHeads + h) * kValue + c]));
      }
  expect(worst < 1e-5, "attention is the formula's", variant);
}

void check_rows(const Variant& variant, std::mt19937& noise) {
  const Lanes& lanes = lanes_named(variant.name);
  const int64_t D = 96, F = 7, n = 13;
  const std::vector<float> x = random(n * D, noise), w = random(F * 37, noise);
  std::vector<uint8_t> theirs(quantized_bytes(n, D)), ours(theirs.size());
  variant.quantize(x.data(), n, D, theirs.data());
  for (int m = 0; m < n; ++m) lanes.quantize_row(x.data() + m * D, D, m, n, ours.data());
  expect(ours == theirs, "rows quantized one by one are the group's bytes", variant.name);
  std::vector<Bf16> narrowed(w.size());
  for (size_t i = 0; i < w.size(); ++i) narrow(w[i], narrowed[i]);
  std::vector<float> out(n * F), alone(F);
  double worst = 0;
  lanes.multiply_dense(narrowed.data(), Kind::bf16, 37, 0, F, x.data(), D, n, out.data(), F);
  for (int64_t t = 0; t < n; ++t) {
    lanes.multiply_dense(narrowed.data(), Kind::bf16, 37, 0, F, x.data() + t * D, D, 1, alone.data(), F);
    expect(!std::memcmp(alone.data(), out.data() + t * F, F * sizeof(float)), "a row alone is that row in company", variant.name);
    for (int64_t f = 0; f < F; ++f) {
      double sum = 0;
      for (int64_t d = 0; d < 37; ++d) sum += double(wide(narrowed[f * 37 + d])) * x[t * D + d];
      worst = std::max(worst, std::fabs(sum - out[t * F + f]));
    }
  }
  expect(worst < 1e-4, "a dense product is that of the numbers", variant.name);
  std::vector<float> gate(x.begin(), x.begin() + 37), up(x.begin() + 37, x.begin() + 74), gated(37), normal(gate);
  lanes.gate({Act::silu, 1.0f, std::numeric_limits<float>::infinity(), 0.0f}, gate.data(), up.data(), 37, gated.data());
  lanes.normalize({true, 1e-5f, 0.0f, nullptr, nullptr}, normal.data(), 37, normal.data());
  double mean = 0, spread = 0;
  for (float y : gate) mean += y / 37;
  for (float y : gate) spread += (y - mean) * (y - mean) / 37;
  for (int i = 0; i < 37; ++i) {
    expect(std::fabs(gated[i] - double(gate[i]) / (1 + std::exp(-double(gate[i]))) * up[i]) < 1e-5, "a gate is the formula's", variant.name);
    expect(std::fabs(normal[i] - (gate[i] - mean) / std::sqrt(spread + 1e-5)) < 1e-5, "a norm is the formula's", variant.name);
  }
}

// One layer of attention and one of experts: two rows together and alone, token by token.
void check_plan(const char* variant, std::mt19937& noise) {
  const int64_t D = 20, E = kHeads * kWidth, K = kKvHeads * kWidth, V = 11;
  const std::vector<float> embed = random(V * D, noise), q = random(E * D, noise), k = random(K * D, noise), v = random(K * D, noise), o = random(D * E, noise);
  const std::vector<float> turning = random(kWidth / 2, noise), router = random(kExperts * D, noise), correction = random(kExperts, noise);
  std::vector<std::vector<float>> parts;
  Plan plan(variant, kPage);
  const auto dense = [&](const std::vector<float>& w, int64_t rows, int64_t columns) {
    return plan.matrix({nullptr, 0, w.data(), Kind::f32, rows, columns, nullptr});
  };
  const int x = plan.buffer(D), qs = plan.buffer(E), ks = plan.buffer(K), vs = plan.buffer(K), out = plan.buffer(E);
  const int group = plan.group({{0, 0, false, true}, kHeads, kKvHeads, kWidth, 0}), rope = plan.rope({kWidth / 2 * 2, 1.0f, false});
  plan.embed(dense(embed, V, D), x, 1.0f);
  plan.multiply(x, {{dense(q, E, D), qs}, {dense(k, K, D), ks}, {dense(v, K, D), vs}});
  plan.heads(qs, ks, vs, 0, group, kHeads, kKvHeads, kWidth, 0.0f, {}, {}, {}, rope, {Sharpen::none, 0, 0, 0, 0});
  plan.attend(qs, out, 0, group, {nullptr, nullptr, Kind::f32, 0, 0, {}, {nullptr, nullptr, Kind::f32, kWidth}, kHeads, kKvHeads, kWidth, kPage, 0.2f, 0.0f,
                                  {0, 0, false, true}, nullptr, nullptr});
  plan.multiply(out, {{dense(o, D, E), x}});
  const int logits = plan.buffer(kExperts), h = plan.buffer(D);
  const auto part = [&](int64_t rows, int64_t columns) { return dense(parts.emplace_back(random(rows * columns, noise)), rows, columns); };
  std::vector<Expert> experts;
  for (int e = 0; e < kExperts; ++e) experts.push_back({part(kInner, D), part(kInner, D), part(D, kInner)});
  plan.multiply(x, {{dense(router, kExperts, D), logits}});
  plan.route(logits, {kExperts, 2, 3, 2, true, true, false, true, 1.0f, 2.0f, correction.data(), nullptr});
  plan.experts(x, h, experts, 2, kInner, false, {Act::silu, 1.0f, std::numeric_limits<float>::infinity(), 0.0f});
  plan.add(x, h, 1.0f);
  const int64_t n_pages = 6, ids[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3};
  std::vector<float> ks_pool(n_pages * kPage * K), vs_pool(n_pages * kPage * K), together(10 * D), alone(10 * D);
  const Pools pools{ks_pool.data(), vs_pool.data(), nullptr, nullptr};
  const auto run = [&](int64_t n, const int64_t* of, std::vector<PassRow> rows, std::vector<std::vector<int32_t>> tables, float* to) {
    const size_t B = rows.size();
    return plan.run({n, of, nullptr, std::move(rows), std::move(tables), std::vector<int64_t>(B), std::vector<const float*>(B, turning.data()), &pools, Kind::f32},
                    x, to);
  };
  for (int n_threads : {1, 3}) {
    Pool::get().resize(n_threads);
    expect(run(10, ids, {{7, 0}, {3, 0}}, {{4, 1}, {5}}, together.data()), "a pass computes numbers", variant);
    for (int t = 0; t < 7; ++t) run(1, ids + t, {{1, t}}, {{0, 2}}, alone.data() + t * D);
    for (int t = 0; t < 3; ++t) run(1, ids + 7 + t, {{1, t}}, {{3}}, alone.data() + (7 + t) * D);
    expect(alone == together, "tokens one by one are those of one pass", variant);
  }
}

}  // namespace

int check_lanes() {
  std::mt19937 noise(2);
  for (const Variant* variant : variants()) {
    check_attention(variant->name, noise);
    check_rows(*variant, noise);
    check_plan(variant->name, noise);
  }
  return n_failed;
}
