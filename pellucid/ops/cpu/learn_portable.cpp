#include "learn_kernel.h"

namespace pellucid {

extern const Learn kLearnPortable[2];
const Learn kLearnPortable[2] = {learn_of<float>(), learn_of<Bf16>()};

}  // namespace pellucid
