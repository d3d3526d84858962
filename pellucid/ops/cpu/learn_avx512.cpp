#include "learn_kernel.h"

namespace pellucid {

extern const Learn kLearnAvx512[2];
const Learn kLearnAvx512[2] = {learn_of<float>(), learn_of<Bf16>()};

}  // namespace pellucid
