// The border to Python of plans: addresses and sizes as whole numbers, checked there (model/plan.py).
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <limits>

#include "kinds.h"
#include "plan.h"

namespace nb = nanobind;
using namespace nb::literals;
namespace pellucid {
namespace {

Act act_named(const std::string& name) {
  const char* const names[] = {"silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2", "linear"};
  for (int i = 0; i < 7; ++i)
    if (name == names[i]) return static_cast<Act>(i);
  throw nb::value_error(("no kernels for the activation " + name).c_str());
}

Gate gate_of(const std::string& act, float slope, float limit, float up_offset) {
  return {act_named(act), slope, limit ? limit : std::numeric_limits<float>::infinity(), up_offset};
}

Norm norm_of(nb::dict d) {
  return {nb::cast<bool>(d["layer"]), nb::cast<float>(d["eps"]), nb::cast<float>(d["offset"]), at<const float>(nb::cast<uintptr_t>(d["weight"])),
          at<const float>(nb::cast<uintptr_t>(d["bias"]))};
}

HeadNorm head_norm_of(nb::object o) {
  if (o.is_none()) return {};
  nb::dict d = nb::cast<nb::dict>(o);
  return {true, nb::cast<bool>(d["each"]), nb::cast<bool>(d["whole"]), nb::cast<bool>(d["late"]), norm_of(d)};
}

Sight sight_of(int64_t window, int64_t chunk, bool from_first, bool causal) { return {window, chunk, from_first, causal}; }

using Starts = std::vector<std::pair<int64_t, int64_t>>;  // of each row its tokens of this pass, and those before
using Tables = std::vector<std::vector<int32_t>>;

Pass pass_of(const Starts& rows, Tables&& tables, std::vector<int64_t>&& bases, const std::vector<uintptr_t>& frequencies, uintptr_t pools,
             const std::string& kept) {
  Pass pass{0, nullptr, nullptr, {}, std::move(tables), std::move(bases), {}, at<const Pools>(pools), kind_named(kept)};
  for (uintptr_t address : frequencies) pass.frequencies.push_back(at<const float>(address));
  for (const auto& [n, start] : rows) pass.rows.push_back({n, start}), pass.n_tokens += n;
  return pass;
}

bool run(Plan& plan, uintptr_t ids, uintptr_t embeddings, const Starts& rows, Tables tables, std::vector<int64_t> bases,
         const std::vector<uintptr_t>& frequencies, uintptr_t pools, const std::string& kept, int last, uintptr_t out) {
  Pass pass = pass_of(rows, std::move(tables), std::move(bases), frequencies, pools, kept);
  pass.ids = at<const int64_t>(ids), pass.embeddings = at<const float>(embeddings);
  nb::gil_scoped_release release;
  return plan.run(std::move(pass), last, at<float>(out));
}

std::vector<std::vector<int64_t>> go_on(Plan& plan, const std::vector<int64_t>& ids, const std::vector<int64_t>& starts, Tables tables,
                                        std::vector<int64_t> bases, const std::vector<uintptr_t>& frequencies, uintptr_t pools, const std::string& kept,
                                        int last, int head, int64_t n, const std::vector<int64_t>& stops) {
  Starts rows;
  for (int64_t start : starts) rows.emplace_back(1, start);
  Pass pass = pass_of(rows, std::move(tables), std::move(bases), frequencies, pools, kept);
  pass.ids = ids.data();
  const int64_t B = pass.n_tokens;
  std::vector<int64_t> came(n * B);
  {
    nb::gil_scoped_release release;
    n = plan.go_on(std::move(pass), last, head, n, stops, came.data());
  }
  std::vector<std::vector<int64_t>> out;
  for (int64_t i = 0; i < n; ++i) out.emplace_back(came.begin() + i * B, came.begin() + (i + 1) * B);
  return out;
}

}  // namespace

void bind_plan(nb::module_& m) {
  nb::class_<Plan>(m, "Plan", "A pass of a decoder as a flat list of steps. What it is given must outlive it.")
      .def(nb::init<const std::string&, int64_t>(), "variant"_a, "page"_a)
      .def_rw("measured", &Plan::measured)
      .def("seconds", &Plan::seconds)
      .def("buffer", &Plan::buffer, "width"_a)
      .def("packed", [](Plan& plan, const std::string& format, uintptr_t data, int64_t n_rows, int64_t n_columns, uintptr_t bias) {
             return plan.matrix({at<const uint8_t>(data), format_index(format), nullptr, Kind::f32, n_rows, n_columns, at<const float>(bias)});
           }, "format"_a, "data"_a, "n_rows"_a, "n_columns"_a, "bias"_a)
      .def("rows", [](Plan& plan, const std::string& format, uintptr_t data, int64_t n_rows, int64_t n_columns) {
             return plan.matrix({nullptr, format_index(format), nullptr, Kind::f32, n_rows, n_columns, nullptr, at<const uint8_t>(data)});
           }, "format"_a, "data"_a, "n_rows"_a, "n_columns"_a)
      .def("dense", [](Plan& plan, const std::string& kind, uintptr_t data, int64_t n_rows, int64_t n_columns, uintptr_t bias) {
             return plan.matrix({nullptr, 0, at<const void>(data), kind_named(kind), n_rows, n_columns, at<const float>(bias)});
           }, "kind"_a, "data"_a, "n_rows"_a, "n_columns"_a, "bias"_a)
      .def("rope", [](Plan& plan, int64_t R, float gain, bool adjacent) { return plan.rope({R, gain, adjacent}); }, "n_turning"_a, "gain"_a, "adjacent"_a)
      .def("group", [](Plan& plan, int64_t window, int64_t chunk, int64_t n_heads, int64_t n_kv_heads, int64_t width, int table) {
             return plan.group({sight_of(window, chunk, false, true), n_heads, n_kv_heads, width, table});
           }, "window"_a, "chunk"_a, "n_heads"_a, "n_kv_heads"_a, "width"_a, "table"_a)
      .def("embed", &Plan::embed, "matrix"_a, "out"_a, "factor"_a)
      .def("place", &Plan::place, "matrix"_a, "x"_a, "offset"_a)
      .def("add", &Plan::add, "to"_a, "x"_a, "factor"_a)
      .def("add_shared", &Plan::add_shared, "to"_a, "x"_a, "gate"_a)
      .def("route", [](Plan& plan, int logits, int64_t n_experts, int64_t n_active, int64_t n_groups, int64_t n_active_groups, bool sigmoid, bool best_two,
                       bool spread, bool renormalize, float router_scale, float share_scale, uintptr_t correction, uintptr_t gain) {
             plan.route(logits, {n_experts, n_active, n_groups, n_active_groups, sigmoid, best_two, spread, renormalize, router_scale, share_scale,
                                 at<const float>(correction), at<const float>(gain)});
           }, "logits"_a, "n_experts"_a, "n_active"_a, "n_groups"_a, "n_active_groups"_a, "sigmoid"_a, "best_two"_a, "spread"_a, "renormalize"_a,
           "router_scale"_a, "share_scale"_a, "correction"_a, "gain"_a)
      .def("experts", [](Plan& plan, int x, int out, const std::vector<std::vector<int>>& experts, int64_t n_active, int64_t d_ff, bool scale_input,
                         const std::string& act, float slope, float limit, float up_offset) {
             std::vector<Expert> each;
             for (const auto& of : experts) each.push_back({of.at(0), of.at(1), of.at(2)});
             plan.experts(x, out, std::move(each), n_active, d_ff, scale_input, gate_of(act, slope, limit, up_offset));
           }, "x"_a, "out"_a, "experts"_a, "n_active"_a, "d_ff"_a, "scale_input"_a, "act"_a, "slope"_a, "limit"_a, "up_offset"_a)
      .def("scale", [](Plan& plan, int x, uintptr_t factor) { plan.scale(x, at<const float>(factor)); }, "x"_a, "factor"_a)
      .def("normalize", [](Plan& plan, int x, int out, nb::dict norm) { plan.normalize(x, out, norm_of(norm)); }, "x"_a, "out"_a, "norm"_a)
      .def("multiply", &Plan::multiply, "x"_a, "matrices_and_outs"_a)
      .def("heads", [](Plan& plan, int q, int k, int v, int kept, int group, int64_t n_heads, int64_t n_kv_heads, int64_t width, float clip,
                       nb::object q_norm, nb::object k_norm, nb::object v_norm, int rope, std::pair<int, std::vector<float>> sharpen) {
             const auto& s = sharpen.second;
             plan.heads(q, k, v, kept, group, n_heads, n_kv_heads, width, clip, head_norm_of(q_norm), head_norm_of(k_norm), head_norm_of(v_norm), rope,
                        {static_cast<decltype(Sharpen::kind)>(sharpen.first), s.at(0), s.at(1), s.at(2), s.at(3)});
           }, "q"_a, "k"_a, "v"_a, "kept"_a, "group"_a, "n_heads"_a, "n_kv_heads"_a, "width"_a, "clip"_a, "q_norm"_a.none(), "k_norm"_a.none(),
           "v_norm"_a.none(), "rope"_a, "sharpen"_a)
      .def("attend", [](Plan& plan, int q, int out, int kept, int group, float scale, float softcap, uintptr_t sinks, uintptr_t slopes) {
             const Group& g = plan.groups.at(group);
             const Attend how{nullptr, nullptr, Kind::f32, 0, 0, {}, {nullptr, nullptr, Kind::f32, g.width}, g.n_heads, g.n_kv_heads, g.width, plan.page, scale,
                              softcap, g.sight, at<const float>(sinks), at<const float>(slopes)};
             plan.attend(q, out, kept, group, how);
           }, "q"_a, "out"_a, "kept"_a, "group"_a, "scale"_a, "softcap"_a, "sinks"_a, "slopes"_a)
      .def("gate", [](Plan& plan, int gate, int up, int out, const std::string& act, float slope, float limit, float up_offset) {
             plan.gate(gate, up, out, gate_of(act, slope, limit, up_offset));
           }, "gate"_a, "up"_a, "out"_a, "act"_a, "slope"_a, "limit"_a, "up_offset"_a)
      .def("go_on", go_on, "ids"_a, "starts"_a, "tables"_a, "bases"_a, "frequencies"_a, "pools"_a, "kept"_a, "last"_a, "head"_a, "n"_a, "stops"_a)
      .def("run", run, "ids"_a, "embeddings"_a, "rows"_a, "tables"_a, "bases"_a, "frequencies"_a, "pools"_a, "kept"_a, "last"_a, "out"_a)
      .def("unembed", [](Plan& plan, int matrix, uintptr_t x, int64_t n, float factor, float cap, uintptr_t out) {
             nb::gil_scoped_release release;
             plan.unembed(matrix, at<const float>(x), n, factor, cap, at<float>(out));
           }, "matrix"_a, "x"_a, "n"_a, "factor"_a, "cap"_a, "out"_a)
      .def("likeliest", [](Plan& plan, int matrix, uintptr_t x, int64_t n) {
             std::vector<int64_t> out(n);
             nb::gil_scoped_release release;
             plan.likeliest(matrix, at<const float>(x), n, out.data());
             return out;
           }, "matrix"_a, "x"_a, "n"_a);
}

}  // namespace pellucid
