#include "learn.h"

#include <cstring>

#include "attend_learn.h"
#include "processor.h"

namespace pellucid {

extern const Learn kLearnPortable[2], kLearnAvx2[2], kLearnAvx512[2], kLearnNeon[2];
extern const AttendTiles kAttendAmx;

const Learn& learn_named(const char* variant, Kind kind) {
  const Learn* found = kLearnPortable;
#if defined(__x86_64__)
  if (!std::strncmp(variant, "avx512", 6)) found = kLearnAvx512;
  if (!std::strcmp(variant, "avx2")) found = kLearnAvx2;
#elif defined(__aarch64__)
  if (!std::strcmp(variant, "neon")) found = kLearnNeon;
#endif
  return found[kind == Kind::bf16];
}

const AttendTiles* attend_tiles() {
#if defined(__x86_64__)
  if (features().amx_bf16 && features().avx512_bf16) return &kAttendAmx;
#endif
  return nullptr;
}

}  // namespace pellucid
