// What the files of a plan share: memory that threads keep, and how much work is one chunk.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "plan.h"
#include "pool.h"

namespace pellucid {
namespace {

constexpr int64_t kColumnsAtOnce = 1024;  // of a row of numbers that are gated: a microsecond's work
constexpr int64_t kNumbersAtOnce = 4096;  // of the rows that are normalized, turned or quantized in one chunk

// Memory that a thread keeps.
template <class T>
T* scratch(int64_t n) {
  static thread_local std::vector<T> held;
  if (static_cast<int64_t>(held.size()) < n) held.resize(n);
  return held.data();
}

// f(token) for every token: several in one chunk where their rows are short.
template <class Fn>
void each_token(int64_t n, int64_t width, Fn&& f) {
  const int64_t some = std::max<int64_t>(1, kNumbersAtOnce / width);
  parallel_for((n + some - 1) / some, [&](int64_t chunk) {
    for (int64_t t = chunk * some; t < std::min(n, (chunk + 1) * some); ++t) f(t);
  });
}

// f(row, first, n) for parts of every row's columns.
template <class Fn>
void each_part(int64_t n_rows, int64_t width, Fn&& f) {
  const int64_t parts = (width + kColumnsAtOnce - 1) / kColumnsAtOnce;
  parallel_for(n_rows * parts, [&](int64_t chunk) {
    const int64_t first = chunk % parts * kColumnsAtOnce;
    f(chunk / parts, first, std::min(kColumnsAtOnce, width - first));
  });
}

}  // namespace
}  // namespace pellucid
