// What training computes besides products, by every variant, in memory that is as large as it must be and no larger. Whether the numbers are right the
// tests in Python ask of torch; here what is written has to be all of the rows that were asked for, the same in two parts as in one. See check.cpp.
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "attend_learn.h"
#include "learn.h"
#include "numbers.h"
#include "variant.h"

using namespace pellucid;

namespace {

template <class N>
std::vector<N> random_numbers(int64_t n, std::mt19937& noise) {
  std::normal_distribution<float> normal;
  std::vector<N> out(n);
  for (N& x : out) narrow(normal(noise), x);
  return out;
}

template <class N>
double size_of(const std::vector<N>& of) {
  double sum = 0;
  for (const N& x : of) sum += double(wide(x)) * wide(x);
  return sum;
}

// run(first, last, out): rows of n numbers of out. They are numbers, and the same in two parts as in one.
template <class N>
bool holds(int64_t rows, int64_t n, const std::function<void(int64_t, int64_t, N*)>& run) {
  std::vector<N> whole(rows * n), parts(rows * n);
  run(0, rows, whole.data());
  run(0, rows / 2, parts.data()), run(rows / 2, rows, parts.data());
  const double size = size_of(whole);
  return size > 0 && size < 1e30 && size == size_of(parts);
}

template <class N>
int check_rows(const Learn& learn, const char* variant, std::mt19937& noise) {
  constexpr int64_t T = 5, D = 77, H = 3, C = 22, R = 10, V = 203;  // no width is whole vectors
  const auto x = random_numbers<N>(T * D, noise), by = random_numbers<N>(T * D, noise), weight = random_numbers<N>(D, noise);
  const auto heads = random_numbers<N>(T * H * C, noise), logits = random_numbers<N>(T * V, noise);
  const auto angles = random_numbers<float>(T * R, noise), floats = random_numbers<float>(T * D, noise);
  const std::vector<int64_t> targets{0, 3, 202, 17, 16};
  int n_failed = 0;
  const auto expect = [&](bool fact, const char* what) {
    if (fact) return;
    ++n_failed;
    std::printf("failed: rows of %s are numbers, the same in parts %s\n", what, variant);
  };
  for (const void* w : {static_cast<const void*>(weight.data()), static_cast<const void*>(nullptr)}) {
    const Normed how{x.data(), w, D, 1e-5f, 0.5f};
    std::vector<float> inverse(T);
    expect(holds<N>(T, D, [&](int64_t a, int64_t b, N* y) { learn.normalize(how, a, b, y, inverse.data()); }), "normalize");
    std::vector<float> by_weight(w ? D : 0);
    expect(holds<N>(T, D, [&](int64_t a, int64_t b, N* to) { learn.normalize_back(how, a, b, by.data(), inverse.data(), to, w ? by_weight.data() : nullptr); }),
           "normalize_back");
    expect(!w || size_of(by_weight) > 0, "by_weight");
  }
  for (int way = 0; way < 4; ++way)
    expect(holds<N>(T, H * C, [&](int64_t a, int64_t b, N* to) {
             learn.rotate({heads.data(), to, angles.data(), angles.data(), H, C, R, way % 2 > 0, way / 2 > 0}, a, b);
           }), "rotate");
  expect(holds<N>(T, D, [&](int64_t a, int64_t b, N* to) { learn.gate(x.data() + a * D, by.data() + a * D, (b - a) * D, to + a * D); }), "gate");
  std::vector<N> by_up(T * D);
  expect(holds<N>(T, D, [&](int64_t a, int64_t b, N* to) {
           learn.gate_back(x.data() + a * D, by.data() + a * D, x.data() + a * D, (b - a) * D, to + a * D, by_up.data() + a * D);
         }), "gate_back");
  expect(size_of(by_up) > 0, "gate_back's other side");
  std::vector<float> told(T);
  expect(holds<N>(T, V, [&](int64_t a, int64_t b, N* to) {
           std::copy(logits.begin() + a * V, logits.begin() + b * V, to + a * V);
           learn.surprise(to, targets.data(), V, a, b, told.data());
         }), "surprise");
  expect(holds<N>(T, D, [&](int64_t a, int64_t b, N* to) { learn.round(floats.data() + a * D, (b - a) * D, to + a * D); }), "round");
  return n_failed;
}

int check_attention(std::mt19937& noise) {
  const AttendTiles* tiles = attend_tiles();
  if (!tiles) return 0;
  int n_failed = 0;
  struct alignas(64) Line {
    uint8_t bytes[64];
  };
  for (int64_t T : {1, 33, 150}) {
    constexpr int64_t H = 4, K = 2, C = 64, V = 64;
    const auto q = random_numbers<Bf16>(T * H * C, noise), k = random_numbers<Bf16>(T * K * C, noise), v = random_numbers<Bf16>(T * K * V, noise);
    const auto by_out = random_numbers<Bf16>(T * H * V, noise);
    std::vector<Bf16> out(T * H * V), by_q(T * H * C), by_k(T * K * C), by_v(T * K * V);
    std::vector<float> log_sums(T * H);
    const AttendLearn how{q.data(), k.data(), v.data(), out.data(), log_sums.data(), H, K, C, V, 0.125f, T > 100 ? 40 : 0, by_out.data(), by_q.data(), by_k.data(),
                          by_v.data()};
    for (int64_t head = 0; head < K; ++head) {
      std::vector<Line> room((tiles->scratch_bytes(how, T, false) + 63) / 64), more((tiles->scratch_bytes(how, T, true) + 63) / 64);
      for (int64_t part = 0; part < 2; ++part) tiles->forward(how, 0, T, head, part, 2, room[0].bytes);
      tiles->back(how, 0, T, head, more[0].bytes);
    }
    const bool numbers = size_of(out) > 0 && size_of(by_v) > 0 && size_of(out) + size_of(by_q) + size_of(by_k) + size_of(by_v) < 1e30;
    if (numbers) continue;
    ++n_failed;
    std::printf("failed: attention's gradients are numbers\n");
  }
  return n_failed;
}

}  // namespace

int check_learn() {
  std::mt19937 noise(6);
  int n_failed = check_attention(noise);
  for (const Variant* variant : variants())
    n_failed += check_rows<float>(learn_named(variant->name, Kind::f32), variant->name, noise) +
                check_rows<Bf16>(learn_named(variant->name, Kind::bf16), variant->name, noise);
  return n_failed;
}
