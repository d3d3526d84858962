#include <cstring>

#include "lanes_table.h"

namespace pellucid {

extern const Lanes kLanesPortable, kLanesAvx2, kLanesAvx512, kLanesNeon;

const Lanes& lanes_named(const char* variant) {
#if defined(__x86_64__)
  if (!std::strncmp(variant, "avx512", 6)) return kLanesAvx512;  // with tiles or without: they multiply whole numbers only
  if (!std::strcmp(variant, kLanesAvx2.name)) return kLanesAvx2;
#elif defined(__aarch64__)
  if (!std::strcmp(variant, kLanesNeon.name)) return kLanesNeon;
#endif
  return kLanesPortable;
}

}  // namespace pellucid
