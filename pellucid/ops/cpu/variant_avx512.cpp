// AVX-512 with VNNI.
#include "avx512.h"

namespace pellucid {

extern const Variant kAvx512;
constexpr Variant kAvx512 = make<Avx512>("avx512-vnni");

}  // namespace pellucid
