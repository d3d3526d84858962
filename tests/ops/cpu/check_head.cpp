// The likeliest of a head's logits, in every format by every variant, beside all logits. See check.cpp.
#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

#include "plan.h"
#include "pool.h"
#include "variant.h"

using namespace pellucid;

int check_head() {
  constexpr int64_t V = 530, D = 256, n = 35;  // the last panel is not full; more rows than are computed in one go
  std::mt19937 noise(5);
  std::normal_distribution<float> normal;
  int n_failed = 0;
  Pool::get().resize(3);
  for (int format = 0; format < kFormats; ++format) {
    const Layout& layout = kLayouts[format];
    std::vector<uint8_t> from(V * (D / layout.block) * layout.source_bytes), data(packed_bytes(layout, V, D));
    for (uint8_t& b : from) b = static_cast<uint8_t>(noise()) & (layout.scale == Scale::exponent ? 0x7f : 0xbf);
    repack(format, from.data(), V, D, data.data());
    std::vector<float> x(n * D), logits(n * V);
    for (float& number : x) number = normal(noise);
    std::vector<int64_t> found(n), expected(n);
    for (const Variant* variant : variants()) {
      Plan plan(variant->name, 32);
      const int head = plan.matrix({data.data(), format, nullptr, Kind::f32, V, D, nullptr});
      plan.unembed(head, x.data(), n, 1.0f, 0.0f, logits.data());
      plan.likeliest(head, x.data(), n, found.data());
      for (int64_t t = 0; t < n; ++t) expected[t] = std::max_element(logits.begin() + t * V, logits.begin() + (t + 1) * V) - (logits.begin() + t * V);
      if (found == expected) continue;
      ++n_failed;
      std::printf("failed: the likeliest is that of all logits %s %s\n", layout.name, variant->name);
    }
  }
  return n_failed;
}
