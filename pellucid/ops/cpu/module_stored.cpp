// The border to Python of products with matrices as files hold them: addresses and sizes as whole numbers, checked there (ops/stored.py).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <string>
#include <vector>

#include "kinds.h"
#include "lanes_table.h"
#include "stored.h"

namespace nb = nanobind;
using namespace nb::literals;
namespace pellucid {
namespace {

const char* stored_name(int i) { return i < kFormats ? kLayouts[i].name : kCoded[i - kFormats].name; }

std::vector<std::string> stored_formats() {
  std::vector<std::string> out;
  for (int i = 0; i < kStored; ++i) out.push_back(stored_name(i));
  return out;
}

}  // namespace

int stored_format(const char* format) {
  for (int i = 0; i < kStored; ++i)
    if (!std::strcmp(format, stored_name(i))) return i;
  throw nb::value_error((std::string("no kernels for weights stored as ") + format).c_str());
}

namespace {

void matmul_stored(const std::string& variant, const std::string& format, uintptr_t data, int64_t row_bytes, int64_t n_rows, int64_t n_columns,
                   uintptr_t table, int64_t each, int64_t group, uintptr_t scales, uintptr_t zeros, float zero, uintptr_t x, int64_t n, uintptr_t bias,
                   uintptr_t out) {
  const Lanes& lanes = lanes_named(variant.c_str());
  const Stored w{stored_format(format.c_str()), at<const uint8_t>(data), row_bytes, n_rows, n_columns, at<const float>(table), each, group, at<const float>(scales),
                 at<const float>(zeros), zero};
  nb::gil_scoped_release release;
  multiply_stored(lanes, w, at<const float>(x), n, at<const float>(bias), at<float>(out));
}

}  // namespace

void bind_stored(nb::module_& m) {
  m.def("stored_formats", stored_formats, "What is multiplied as files hold it.");
  m.def("matmul_stored", matmul_stored, "variant"_a, "format"_a, "data"_a, "row_bytes"_a, "n_rows"_a, "n_columns"_a, "table"_a, "each"_a, "group"_a,
        "scales"_a, "zeros"_a, "zero"_a, "x"_a, "n"_a, "bias"_a, "out"_a);
}

}  // namespace pellucid
