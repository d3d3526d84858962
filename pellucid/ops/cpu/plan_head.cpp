// A plan's head: logits, or where the largest of them is.
//
// Packed weights are multiplied by x and by what its rounding to 8 bits leaves over: model/decoder.py, Unembed. The second product is small. Where only
// the largest logit is asked for, it is computed where it may matter: |w . rest| is at most |w| |rest|.
#include <cmath>
#include <cstring>
#include <limits>

#include "plan_parts.h"
#include "variant.h"

namespace pellucid {
namespace {

constexpr int64_t kTokensAtOnce = 32;  // whose two rows are few groups, so that a chunk of the matrix is near for all of them
constexpr int64_t kLogitsAtOnce = 1024;  // of a row that is searched: a microsecond's work

// Memory of a thread beside that of the one that called it.
struct alignas(64) Logits {
  float numbers[16];
};
struct Rounded {
  uint8_t byte;
};

// Between which two numbers the largest logit of a chunk is. Both are no number where one of the logits is none.
struct Bounds {
  float low, high;
};

// What quantizing a row takes from it.
void leave_over(const Lanes& lanes, const float* x, int64_t D, float* out) {
  uint8_t* quantized = scratch<uint8_t>(quantized_bytes(1, D));
  lanes.quantize_row(x, D, 0, 1, quantized);
  for (int64_t d = 0; d < D; d += kColumns, quantized += kRowBytes) {
    float scale;
    std::memcpy(&scale, quantized + kColumns, sizeof scale);
    for (int64_t i = 0; i < kColumns; ++i) out[d + i] = x[d + i] - static_cast<float>(reinterpret_cast<const int8_t*>(quantized)[i]) * scale;
  }
}

float length(const float* x, int64_t n) {
  float sums[kColumns] = {}, sum = 0.0f;
  for (int64_t d = 0; d < n; d += kColumns)
    for (int64_t i = 0; i < kColumns; ++i) sums[i] += x[d + i] * x[d + i];
  for (float part : sums) sum += part;
  return std::sqrt(sum);
}

// How much the second product and all rounding can change a logit of a row of the matrix whose length is 1. The rest is rounded to 8 bits as well, which makes
// it longer by at most sqrt(32) / 254, and sums in floats are off by some 1e-7 of the lengths' product: both with room to spare.
float reach(const float* x, const float* rest, int64_t D) { return 1.03f * length(rest, D) + 1e-6f * length(x, D); }

int64_t panel_bytes(const Packed& w) { return w.n_columns / kLayouts[w.format].block * kLayouts[w.format].panel_bytes(); }

// The rows of a chunk as a matrix of their own.
Packed part(const Packed& w, int64_t from, int64_t end) { return {w.data + from / kPanel * panel_bytes(w), w.format, end - from, w.n_columns}; }

void multiply_here(const Variant& variant, const Packed& w, const uint8_t* x, int64_t n, const float* bias, float* out, int64_t stride) {
  multiply_panels(variant, w, 0, (w.n_rows + kPanel - 1) / kPanel, x, n, bias, out, stride);
}

}  // namespace

// Of every row itself and what its rounding leaves over, side by side, in memory of this thread.
const float* Plan::with_rest(const float* x, int64_t n, int64_t D) const {
  float* rows = scratch<float>(2 * n * D);
  each_token(n, D, [&](int64_t t) {
    std::memcpy(rows + 2 * t * D, x + t * D, D * sizeof(float));
    leave_over(lanes, x + t * D, D, rows + (2 * t + 1) * D);
  });
  return rows;
}

void Plan::unembed(int matrix, const float* x, int64_t n, float factor, float cap, float* out) {
  const Team team;
  const Matrix& w = matrices[matrix];
  const int64_t D = w.n_columns, V = w.n_rows;
  if (!w.panels) {
    product({{x, D, n}}, {{matrix, 0, out, V}});
    if (factor != 1.0f || cap != 0.0f) each_part(n, V, [&](int64_t t, int64_t f, int64_t size) { lanes.scale(out + t * V + f, size, factor, cap); });
    return;
  }
  const Packed packed{w.panels, w.format, V, D};
  for (int64_t first = 0; first < n; first += kTokensAtOnce, x += kTokensAtOnce * D, out += kTokensAtOnce * V) {
    const int64_t some = std::min(kTokensAtOnce, n - first);
    const uint8_t* quantized = in_bytes({{with_rest(x, some, D), D, 2 * some}}, {0}, D);
    parallel_ranges(n_chunks(packed, 2 * some), [&](int64_t chunk) {  // both products and their sum, while they are near
      const auto [from, end] = rows_of_chunk(packed, 2 * some, chunk);
      const int64_t size = end - from, stride = padded(size);
      float* twice = scratch<Logits>(2 * some * stride / kWidest)->numbers;
      multiply_here(variant, part(packed, from, end), quantized, 2 * some, w.bias ? w.bias + from : nullptr, twice, stride);
      for (int64_t t = 0; t < some; ++t, twice += 2 * stride) {
        float *to = out + t * V + from, *rest = twice + stride;
        std::memcpy(to, twice, size * sizeof(float));
        if (w.bias) lanes.add(rest, w.bias + from, size, -1.0f);  // it is in both
        lanes.add(to, rest, size, 1.0f);
        if (factor != 1.0f || cap != 0.0f) lanes.scale(to, size, factor, cap);
      }
    });
  }
}

void Plan::likeliest(int matrix, const float* x, int64_t n, int64_t* out) {
  const Team team;
  Matrix& w = matrices[matrix];
  const bool two = w.panels && !w.bias;  // a bias is rounded into both products, which no length of a row bounds
  if (two && w.longest.empty()) measure(w);
  for (; n > 0; n -= kTokensAtOnce, x += kTokensAtOnce * w.n_columns, out += kTokensAtOnce) {
    if (two) likeliest_of_panels(w, x, std::min(kTokensAtOnce, n), out);
    else likeliest_of_all(matrix, x, std::min(kTokensAtOnce, n), out);
  }
}

void Plan::measure(Matrix& w) const {
  constexpr int64_t kPanelsAtOnce = 16;
  const int64_t n_panels = (w.n_rows + kPanel - 1) / kPanel;
  w.longest.resize(n_panels);
  parallel_for((n_panels + kPanelsAtOnce - 1) / kPanelsAtOnce, [&](int64_t chunk) {
    const int64_t first = chunk * kPanelsAtOnce;
    variant.measure[w.format](w.panels, w.n_columns, first, std::min(first + kPanelsAtOnce, n_panels), w.longest.data() + first);
  });
}

void Plan::likeliest_of_panels(const Matrix& w, const float* x, int64_t n, int64_t* out) const {
  const int64_t D = w.n_columns;
  const Packed packed{w.panels, w.format, w.n_rows, D};
  const float* rows = with_rest(x, n, D);
  const uint8_t* quantized = in_bytes({{rows, 2 * D, n}}, {0}, D);
  std::vector<float> reaches(n);
  for (int64_t t = 0; t < n; ++t) reaches[t] = reach(rows + 2 * t * D, rows + (2 * t + 1) * D, D);
  const int64_t chunks = n_chunks(packed, n);
  std::vector<Bounds> bounds(chunks * n);
  parallel_ranges(chunks, [&](int64_t chunk) {  // the first product
    const auto [from, end] = rows_of_chunk(packed, n, chunk);
    const int64_t size = end - from, stride = padded(size);
    float* numbers = scratch<Logits>(n * stride / kWidest)->numbers;
    multiply_here(variant, part(packed, from, end), quantized, n, nullptr, numbers, stride);
    const float longest = *std::max_element(w.longest.begin() + from / kPanel, w.longest.begin() + (end + kPanel - 1) / kPanel);
    for (int64_t t = 0; t < n; ++t, numbers += stride) {
      const Largest found = lanes.largest(numbers, size);
      const float number = found.place < 0 ? std::numeric_limits<float>::quiet_NaN() : found.number;
      bounds[chunk * n + t] = {number - reaches[t] * longest, number + reaches[t] * longest};
    }
  });
  struct Place {
    int64_t t, chunk;
    Largest found;
  };
  std::vector<Place> places;
  for (int64_t t = 0; t < n; ++t) {
    float low = -std::numeric_limits<float>::infinity(), none = 0.0f;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) low = std::max(low, bounds[chunk * n + t].low), none += bounds[chunk * n + t].high * 0.0f;
    out[t] = -1;
    for (int64_t chunk = 0; chunk < chunks && none == 0.0f; ++chunk)
      if (bounds[chunk * n + t].high >= low) places.push_back({t, chunk, {}});
  }
  parallel_for(static_cast<int64_t>(places.size()), [&](int64_t i) {  // both, where the largest may be
    const auto [from, end] = rows_of_chunk(packed, n, places[i].chunk);
    const Packed here = part(packed, from, end);
    const int64_t size = end - from, stride = padded(size);
    uint8_t* both = &scratch<Rounded>(quantized_bytes(2, D))->byte;
    for (int m = 0; m < 2; ++m) lanes.quantize_row(rows + (2 * places[i].t + m) * D, D, m, 2, both);
    float* numbers = scratch<Logits>(2 * stride / kWidest)->numbers;
    multiply_here(variant, here, both, 2, nullptr, numbers, stride);
    lanes.add(numbers, numbers + stride, size, 1.0f);
    places[i].found = lanes.largest(numbers, size);
    if (places[i].found.place >= 0) places[i].found.place += from;
  });
  for (size_t i = 0; i < places.size();) {
    const Place* best = &places[i];
    bool finite = true;
    for (const int64_t t = best->t; i < places.size() && places[i].t == t; ++i) {
      finite &= places[i].found.place >= 0;
      if (places[i].found.number > best->found.number) best = &places[i];
    }
    if (finite) out[best->t] = best->found.place;
  }
}

void Plan::likeliest_of_all(int matrix, const float* x, int64_t n, int64_t* out) {
  const int64_t V = matrices[matrix].n_rows, parts = (V + kLogitsAtOnce - 1) / kLogitsAtOnce;
  static thread_local std::vector<float> held;  // while steps use all other memory of this thread
  held.resize(std::max<size_t>(held.size(), n * V));
  const float* numbers = held.data();
  unembed(matrix, x, n, 1.0f, 0.0f, held.data());
  std::vector<Largest> found(n * parts);
  parallel_for(n * parts, [&](int64_t i) {
    const int64_t from = i % parts * kLogitsAtOnce;
    found[i] = lanes.largest(numbers + i / parts * V + from, std::min(kLogitsAtOnce, V - from));
    if (found[i].place >= 0) found[i].place += from;
  });
  for (int64_t t = 0; t < n; ++t) {
    const Largest* const row = found.data() + t * parts;
    const Largest* best = row;
    bool finite = true;
    for (const Largest* it = row; it < row + parts; ++it) finite &= it->place >= 0, best = it->number > best->number ? it : best;
    out[t] = finite ? best->place : -1;
  }
}

}  // namespace pellucid
