// Products over all threads, and which variants there are.
#include <algorithm>

#include "processor.h"
#include "pool.h"
#include "variant.h"

namespace pellucid {

extern const Variant kPortable, kAvx2, kAvx512, kAmx, kNeon;

namespace {

constexpr int64_t kChunkBytes = 96 << 10;  // of weights: with a group of rows they stay in a core's second cache
constexpr int64_t kFewChunkBytes = 32 << 10;  // where rows are few, and chunks are read once
constexpr int64_t kFewChunks = 4;  // a thread, at least, of a small matrix: that none waits long for the other
constexpr int64_t kSerial = 16 << 10;  // numbers quantized in less time than it takes to call another thread

int64_t panels(const Packed& w) { return (w.n_rows + kPanel - 1) / kPanel; }

int64_t panels_a_chunk(const Packed& w, int64_t n_rows) {
  const Layout& layout = kLayouts[w.format];
  const int64_t panel_bytes = w.n_columns / layout.block * layout.panel_bytes();
  if (n_rows > kRows) return std::max<int64_t>(1, kChunkBytes / panel_bytes);
  return std::max<int64_t>(1, std::min(kFewChunkBytes / panel_bytes, panels(w) / (kFewChunks * Pool::get().size())));
}

// Memory that a thread keeps, on a line's boundary.
uint8_t* scratch(int64_t n_bytes) {
  static thread_local std::vector<uint8_t> held;
  if (static_cast<int64_t>(held.size()) < n_bytes + kLine) held.resize(n_bytes + kLine);
  return held.data() + (kLine - reinterpret_cast<uintptr_t>(held.data()) % kLine) % kLine;
}

}  // namespace

const std::vector<const Variant*>& variants() {
  static const std::vector<const Variant*> found = [] {
    std::vector<const Variant*> out;
#if defined(__x86_64__)
    if (features().amx_int8) out.push_back(&kAmx);
    if (features().avx512_vnni) out.push_back(&kAvx512);
    if (features().avx2) out.push_back(&kAvx2);
#elif defined(__aarch64__)
    if (features().neon_dot) out.push_back(&kNeon);
#endif
    out.push_back(&kPortable);
    return out;
  }();
  return found;
}

void quantize(const Variant& variant, const float* x, int64_t n_rows, int64_t n_columns, uint8_t* out) {
  const int64_t group_bytes = quantized_bytes(kRows, n_columns);
  auto group = [&](int64_t g) {
    variant.quantize(x + g * kRows * n_columns, static_cast<int>(std::min<int64_t>(kRows, n_rows - g * kRows)), n_columns, out + g * group_bytes);
  };
  const int64_t n_groups = (n_rows + kRows - 1) / kRows;
  if (n_rows * n_columns > kSerial) return parallel_for(n_groups, group);
  for (int64_t g = 0; g < n_groups; ++g) group(g);
}

int64_t n_chunks(const Packed& w, int64_t n_rows) {
  const int64_t n = panels_a_chunk(w, n_rows);
  return (panels(w) + n - 1) / n;
}

std::pair<int64_t, int64_t> rows_of_chunk(const Packed& w, int64_t n_rows, int64_t chunk) {
  const int64_t rows = panels_a_chunk(w, n_rows) * kPanel;
  return {chunk * rows, std::min((chunk + 1) * rows, w.n_rows)};
}

void multiply_panels(const Variant& variant, const Packed& w, int64_t first, int64_t last, const uint8_t* x, int64_t n_rows, const float* bias, float* out,
                     int64_t out_stride) {
  const int64_t whole = std::min(last, w.n_rows / kPanel);
  int64_t done = 0;  // rows whose whole panels are
  const auto multiply = variant.multiply[w.format];
  if (const auto many = variant.multiply_many[w.format]; many && n_rows >= kRows && first < whole) {
    const int64_t n_groups = n_rows / kRows;
    many(w.data, w.n_columns, first, whole, x, n_groups, out, out_stride, scratch(many_bytes(whole - first, w.n_columns)));
    done = n_groups * kRows;
  }
  for (int64_t row = 0; row < n_rows; row += kRows, x += quantized_bytes(kRows, w.n_columns), out += kRows * out_stride) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, n_rows - row));
    if (row >= done) multiply(w.data, w.n_columns, first, whole, x, rows, out, out_stride);
    if (whole < last) {  // the last panel is not full
      float part[kRows * kPanel];
      const Layout& layout = kLayouts[w.format];
      multiply(w.data + whole * (w.n_columns / layout.block) * layout.panel_bytes(), w.n_columns, 0, 1, x, rows, part, kPanel);
      for (int m = 0; m < rows; ++m) std::copy_n(part + m * kPanel, w.n_rows - whole * kPanel, out + m * out_stride + whole * kPanel);
    }
    if (bias)
      for (int m = 0; m < rows; ++m)
        for (int64_t f = first * kPanel; f < std::min(last * kPanel, w.n_rows); ++f) out[m * out_stride + f] += bias[f];
  }
}

void multiply_chunk(const Variant& variant, const Packed& w, const uint8_t* x, int64_t n_rows, const float* bias, float* out, int64_t out_stride,
                    int64_t chunk) {
  const int64_t n = panels_a_chunk(w, n_rows), first = chunk * n;
  multiply_panels(variant, w, first, std::min(first + n, panels(w)), x, n_rows, bias, out, out_stride);
}

void multiply(const Variant& variant, const Packed& w, const uint8_t* x, int64_t n_rows, const float* bias, float* out, int64_t out_stride) {
  parallel_ranges(n_chunks(w, n_rows), [&](int64_t chunk) { multiply_chunk(variant, w, x, n_rows, bias, out, out_stride, chunk); });
}

}  // namespace pellucid
