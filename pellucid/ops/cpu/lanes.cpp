#include <cstring>

#include "lanes_table.h"
#include "processor.h"
#include "tiled.h"

namespace pellucid {

extern const Tiled kTiledAmx;
extern const Lanes kLanesPortable, kLanesAvx2, kLanesAvx512, kLanesNeon;

const Lanes& lanes_named(const char* variant) {
#if defined(__x86_64__)
  if (!std::strncmp(variant, "avx512", 6)) return kLanesAvx512;  // with tiles or without: what tiles multiply is in tiled.h
  if (!std::strcmp(variant, kLanesAvx2.name)) return kLanesAvx2;
#elif defined(__aarch64__)
  if (!std::strcmp(variant, kLanesNeon.name)) return kLanesNeon;
#endif
  return kLanesPortable;
}

const Tiled* tiled_named(const char* variant) {
#if defined(__x86_64__)
  if (!std::strcmp(variant, "avx512-amx") && features().amx_bf16) return &kTiledAmx;
#endif
  static_cast<void>(variant);
  return nullptr;
}

}  // namespace pellucid
