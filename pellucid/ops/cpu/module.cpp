// The border to Python: addresses and sizes as whole numbers, checked there (ops/native.py). Python's lock is released while numbers are computed.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kinds.h"
#include "processor.h"
#include "pool.h"
#include "tiled.h"
#include "variant.h"

namespace nb = nanobind;
using namespace nb::literals;
namespace pellucid {

void bind_attend(nb::module_& m);  // module_attend.cpp
void bind_plan(nb::module_& m);  // module_plan.cpp
void bind_stored(nb::module_& m);  // module_stored.cpp
void bind_learn(nb::module_& m);  // module_learn.cpp

namespace {

const Variant& variant_named(const std::string& name) {
  for (const Variant* variant : variants())
    if (name == variant->name) return *variant;
  throw nb::value_error(("no kernels " + name + " on this processor").c_str());
}

// Memory that a thread keeps for its activations: a product every few microseconds should not ask the system for it.
uint8_t* scratch(int64_t n_bytes) {
  static thread_local std::vector<uint8_t> held;
  if (static_cast<int64_t>(held.size()) < n_bytes) held.resize(n_bytes);
  return held.data();
}

std::vector<std::string> formats() {
  std::vector<std::string> out;
  for (const Layout& layout : kLayouts) out.push_back(layout.name);
  return out;
}

std::vector<std::string> variant_names() {
  std::vector<std::string> out;
  for (const Variant* variant : variants()) out.push_back(variant->name);
  return out;
}

int set_threads(int n) {
  Pool::get().resize(n);
  return Pool::get().size();
}

int64_t bytes_of(const std::string& format, int64_t n_rows, int64_t n_columns) { return packed_bytes(kLayouts[format_index(format)], n_rows, n_columns); }

void repack_rows(const std::string& format, uintptr_t from, int64_t n_rows, int64_t n_columns, uintptr_t to) {
  const int index = format_index(format);
  nb::gil_scoped_release release;
  repack(index, at<const uint8_t>(from), n_rows, n_columns, at<uint8_t>(to));
}

void unpack_rows(const std::string& format, uintptr_t data, int64_t n_rows, int64_t n_columns, uintptr_t rows, int64_t n, uintptr_t out) {
  const Packed w{at<const uint8_t>(data), format_index(format), n_rows, n_columns};
  nb::gil_scoped_release release;
  unpack(w, at<const int64_t>(rows), n, at<float>(out));
}

void matmul(const std::string& variant, const std::string& format, uintptr_t data, int64_t n_rows, int64_t n_columns, uintptr_t x, int64_t n,
            uintptr_t bias, uintptr_t out) {
  const Packed w{at<const uint8_t>(data), format_index(format), n_rows, n_columns};
  const Variant& kernels = variant_named(variant);
  nb::gil_scoped_release release;
  uint8_t* quantized = scratch(quantized_bytes(n, n_columns));
  quantize(kernels, at<const float>(x), n, n_columns, quantized);
  multiply(kernels, w, quantized, n, at<const float>(bias), at<float>(out), n_rows);
}

}  // namespace
}  // namespace pellucid

namespace pellucid {
extern const char* const kSources;  // written by digest.cmake
}

NB_MODULE(_native, m) {
  using namespace pellucid;
  m.attr("sources") = kSources;
  m.def("formats", formats, "Formats of weights that there are products for.");
  m.def("tiled", [](const std::string& variant) { return tiled_named(variant.c_str()) != nullptr; }, "variant"_a,
        "Whether it multiplies dense bfloat16 weights in tiles.");
  m.def("variants", variant_names, "Kernels this processor runs, the best first.");
  m.def("usable_cores", usable_cores);
  m.def("set_threads", set_threads, "n"_a, "Threads that work from now on, the caller counted; returns how many there are.");
  m.def("packed_bytes", bytes_of, "format"_a, "n_rows"_a, "n_columns"_a);
  m.def("repack", repack_rows, "format"_a, "source"_a, "n_rows"_a, "n_columns"_a, "out"_a);
  m.def("unpack", unpack_rows, "format"_a, "data"_a, "n_rows"_a, "n_columns"_a, "rows"_a, "n"_a, "out"_a);
  m.def("matmul", matmul, "variant"_a, "format"_a, "data"_a, "n_rows"_a, "n_columns"_a, "x"_a, "n"_a, "bias"_a, "out"_a);
  bind_attend(m);
  bind_plan(m);
  bind_stored(m);
  bind_learn(m);
}
