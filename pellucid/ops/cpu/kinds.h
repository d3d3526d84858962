// What the files at the border to Python share.
#pragma once
#include <nanobind/nanobind.h>

#include <string>

#include "numbers.h"
#include "packed.h"

namespace pellucid {
namespace {

template <class T>
inline T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

inline int format_index(const std::string& name) {
  for (int i = 0; i < kFormats; ++i)
    if (name == kLayouts[i].name) return i;
  throw nanobind::value_error(("no kernels for weights in the format " + name).c_str());
}

inline Kind kind_named(const std::string& name) {
  if (name == "float32") return Kind::f32;
  if (name == "bfloat16") return Kind::bf16;
  if (name == "float16") return Kind::f16;
  if (name == "int8") return Kind::i8;
  throw nanobind::value_error(("no kernels for numbers of the kind " + name).c_str());
}

}  // namespace
}  // namespace pellucid
