// The border to Python of training: addresses and sizes as whole numbers, checked there (ops/training.py).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "attend_learn.h"
#include "kinds.h"
#include "lanes_table.h"
#include "learn.h"
#include "stored.h"
#include "torch_threads.h"

namespace nb = nanobind;
using namespace nb::literals;
namespace pellucid {
namespace {

constexpr int64_t kNumbers = 1 << 14;  // of a chunk: some microseconds

// f(first, last) over n rows of so many numbers, in chunks that do not depend on how many threads there are.
template <class Fn>
void over_rows(const Threads& threads, int64_t n, int64_t numbers, Fn&& f) {
  const int64_t rows = std::max<int64_t>(1, kNumbers / std::max<int64_t>(1, numbers)), n_chunks = (n + rows - 1) / rows;
  parallel_on(threads, n_chunks, [&](int64_t i) { f(i * rows, std::min(n, (i + 1) * rows)); });
}

Threads threads_of(uintptr_t parallel, int n) { return {reinterpret_cast<Parallel>(parallel), n}; }

void normalize(const std::string& variant, const std::string& kind, uintptr_t x, uintptr_t weight, int64_t n, int64_t D, float eps, float offset, uintptr_t y,
               uintptr_t inverse, uintptr_t parallel, int n_threads) {
  const Learn& learn = learn_named(variant.c_str(), kind_named(kind));
  const Normed how{at<void>(x), at<void>(weight), D, eps, offset};
  nb::gil_scoped_release release;
  over_rows(threads_of(parallel, n_threads), n, D, [&](int64_t first, int64_t last) { learn.normalize(how, first, last, at<void>(y), at<float>(inverse)); });
}

// by_weight: (n_parts, D) zeros, each the sum over its share of the rows; or null.
void normalize_back(const std::string& variant, const std::string& kind, uintptr_t x, uintptr_t weight, int64_t n, int64_t D, float eps, float offset,
                    uintptr_t by_y, uintptr_t inverse, uintptr_t by_x, uintptr_t by_weight, int64_t n_parts, uintptr_t parallel, int n_threads) {
  const Learn& learn = learn_named(variant.c_str(), kind_named(kind));
  const Normed how{at<void>(x), at<void>(weight), D, eps, offset};
  nb::gil_scoped_release release;
  parallel_on(threads_of(parallel, n_threads), n_parts, [&](int64_t i) {
    float* sums = by_weight ? at<float>(by_weight) + i * D : nullptr;
    learn.normalize_back(how, n * i / n_parts, n * (i + 1) / n_parts, at<void>(by_y), at<float>(inverse), at<void>(by_x), sums);
  });
}

void rotate(const std::string& variant, const std::string& kind, uintptr_t x, uintptr_t cos, uintptr_t sin, int64_t T, int64_t H, int64_t C, int64_t R,
            bool adjacent, bool back, uintptr_t out, uintptr_t parallel, int n_threads) {
  const Learn& learn = learn_named(variant.c_str(), kind_named(kind));
  const Turned how{at<void>(x), at<void>(out), at<float>(cos), at<float>(sin), H, C, R, adjacent, back};
  nb::gil_scoped_release release;
  over_rows(threads_of(parallel, n_threads), T, H * C, [&](int64_t first, int64_t last) { learn.rotate(how, first, last); });
}

// Of n numbers; by_out, by_gate and by_up are null on the way forward, and out on the way back.
void gate(const std::string& variant, const std::string& kind, uintptr_t gate, uintptr_t up, int64_t n, uintptr_t out, uintptr_t by_out, uintptr_t by_gate,
          uintptr_t by_up, uintptr_t parallel, int n_threads) {
  const Kind numbers = kind_named(kind);
  const Learn& learn = learn_named(variant.c_str(), numbers);
  const int64_t size = numbers == Kind::bf16 ? 2 : 4;
  nb::gil_scoped_release release;
  over_rows(threads_of(parallel, n_threads), n, 1, [&](int64_t first, int64_t last) {
    const int64_t from = first * size;
    if (out) return learn.gate(at<uint8_t>(gate) + from, at<uint8_t>(up) + from, last - first, at<uint8_t>(out) + from);
    learn.gate_back(at<uint8_t>(gate) + from, at<uint8_t>(up) + from, at<uint8_t>(by_out) + from, last - first, at<uint8_t>(by_gate) + from,
                    at<uint8_t>(by_up) + from);
  });
}

void surprise(const std::string& variant, const std::string& kind, uintptr_t logits, uintptr_t target, int64_t n, int64_t V, uintptr_t out, uintptr_t parallel,
              int n_threads) {
  const Learn& learn = learn_named(variant.c_str(), kind_named(kind));
  nb::gil_scoped_release release;
  over_rows(threads_of(parallel, n_threads), n, V,
            [&](int64_t first, int64_t last) { learn.surprise(at<void>(logits), at<int64_t>(target), V, first, last, at<float>(out)); });
}

uint8_t* scratch(int64_t n_bytes);

// A matrix as a file holds it (see module_stored.cpp) -> (n_rows, n_columns) numbers.
void unpack_stored(const std::string& variant, const std::string& kind, const std::string& format, uintptr_t data, int64_t row_bytes, int64_t n_rows,
                   int64_t n_columns, uintptr_t table, int64_t each, int64_t group, uintptr_t scales, uintptr_t zeros, float zero, uintptr_t out,
                   uintptr_t parallel, int n_threads) {
  const Lanes& lanes = lanes_named(variant.c_str());
  const Kind numbers = kind_named(kind);
  const Learn& learn = learn_named(variant.c_str(), numbers);
  const Stored w{stored_format(format.c_str()), at<const uint8_t>(data), row_bytes, n_rows, n_columns, at<const float>(table), each, group,
                 at<const float>(scales), at<const float>(zeros), zero};
  const int64_t size = numbers == Kind::bf16 ? 2 : 4;
  nb::gil_scoped_release release;
  over_rows(threads_of(parallel, n_threads), n_rows, n_columns, [&](int64_t first, int64_t last) {
    const int64_t n = (last - first) * n_columns;
    auto* wide = reinterpret_cast<float*>(scratch((n + kPast) * 4));
    lanes.unpack_rows(w, first, last, wide);
    learn.round(wide, n, at<uint8_t>(out) + first * n_columns * size);
  });
}

uint8_t* scratch(int64_t n_bytes) {  // the thread's own, on a line's boundary
  static thread_local std::unique_ptr<uint8_t, void (*)(void*)> room{nullptr, std::free};
  static thread_local int64_t size = 0;
  if (size < n_bytes) room.reset(static_cast<uint8_t*>(std::aligned_alloc(64, (n_bytes + 63) / 64 * 64))), size = n_bytes;
  return room.get();
}

// Rows of these lengths; see attend_learn.h. by_out and what follows are null on the way forward.
void attend(uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t out, uintptr_t log_sums, const std::vector<int64_t>& lengths, int64_t H, int64_t K, int64_t C,
            int64_t V, float scale, int64_t window, uintptr_t by_out, uintptr_t by_q, uintptr_t by_k, uintptr_t by_v, uintptr_t parallel, int n_threads) {
  const AttendTiles& tiles = *attend_tiles();
  const AttendLearn how{at<Bf16>(q), at<Bf16>(k), at<Bf16>(v), at<Bf16>(out), at<float>(log_sums), H, K, C, V, scale, window,
                        at<Bf16>(by_out), at<Bf16>(by_q), at<Bf16>(by_k), at<Bf16>(by_v)};
  nb::gil_scoped_release release;
  struct Piece {
    int64_t first, T, head, part;
  };
  const int64_t n = static_cast<int64_t>(lengths.size()) * K, n_parts = by_out || n >= 4 * n_threads ? 1 : (4 * n_threads + n - 1) / std::max<int64_t>(1, n);
  std::vector<Piece> pieces;
  int64_t first = 0, most = 0;
  for (const int64_t T : lengths) {
    for (int64_t head = 0; head < K; ++head)
      for (int64_t part = 0; part < n_parts; ++part) pieces.push_back({first, T, head, part});
    first += T, most = std::max(most, T);
  }
  const int64_t n_bytes = tiles.scratch_bytes(how, most, by_out);
  parallel_on(threads_of(parallel, n_threads), static_cast<int64_t>(pieces.size()), [&](int64_t i) {
    const Piece& piece = pieces[i];
    if (by_out) tiles.back(how, piece.first, piece.T, piece.head, scratch(n_bytes));
    else tiles.forward(how, piece.first, piece.T, piece.head, piece.part, n_parts, scratch(n_bytes));
  });
}

}  // namespace

void bind_learn(nb::module_& m) {
  nb::module_ learn = m.def_submodule("learn", "What training computes besides products, forward and back.");
  learn.def("normalize", normalize);
  learn.def("normalize_back", normalize_back);
  learn.def("rotate", rotate);
  learn.def("gate", gate);
  learn.def("surprise", surprise);
  learn.def("unpack", unpack_stored);
  learn.def("attend", attend);
  learn.def("attends", [] { return attend_tiles() != nullptr; }, "Whether this processor has tiles of bfloat16.");
}

}  // namespace pellucid
