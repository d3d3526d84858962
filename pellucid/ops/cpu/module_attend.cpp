// The border to Python of attention: addresses and sizes as whole numbers, checked there (ops/attention.py).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <utility>
#include <vector>

#include "kinds.h"
#include "lanes_table.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;
namespace pellucid {
namespace {

// rows: (B, 6) of the place of the table's first page among `tables`, the position it begins with, the first key's, how many keys and queries there
// are, and the first query's place.
void attend(const std::string& variant, uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t out, const std::string& kind, const std::string& kept,
            uintptr_t rows, int64_t n_rows, uintptr_t tables, int64_t page, int64_t n_heads, int64_t n_kv_heads, int64_t d_head, int64_t d_value,
            float scale, float softcap, int64_t window, int64_t chunk, uintptr_t sinks, uintptr_t slopes, bool causal) {
  const Lanes& lanes = lanes_named(variant.c_str());
  const Kind stored = kind_named(kept);
  const Attend how{at<void>(q), at<void>(out), kind_named(kind), n_heads * d_head, n_heads * d_value, {at<void>(k), nullptr, stored, d_head}, {at<void>(v), nullptr, stored, d_value},
                   n_heads, n_kv_heads, d_head, page, scale, softcap, {window, chunk, true, causal}, at<const float>(sinks), at<const float>(slopes)};
  nb::gil_scoped_release release;
  std::vector<AttendRow> all;
  const int64_t* fact = at<const int64_t>(rows);
  for (int64_t b = 0; b < n_rows; ++b, fact += 6)
    all.push_back({at<const int32_t>(tables) + fact[0], fact[1], fact[2], fact[2] + fact[3], fact[4], fact[5]});
  Pieces pieces(std::move(all), how.sight, n_heads, n_kv_heads, d_value, Pool::get().size());
  const int64_t room = pieces.scratch(how);
  parallel_for(pieces.size(), [&](int64_t i) {
    static thread_local std::vector<float> scratch;
    if (static_cast<int64_t>(scratch.size()) < room) scratch.resize(room);
    lanes.attend(how, pieces, i, scratch.data());
  });
}

}  // namespace

void bind_attend(nb::module_& m) {
  m.def("attend", attend, "variant"_a, "q"_a, "k"_a, "v"_a, "out"_a, "kind"_a, "kept"_a, "rows"_a, "n_rows"_a, "tables"_a, "page"_a, "n_heads"_a,
        "n_kv_heads"_a, "d_head"_a, "d_value"_a, "scale"_a, "softcap"_a, "window"_a, "chunk"_a, "sinks"_a, "slopes"_a, "causal"_a);
}

}  // namespace pellucid
