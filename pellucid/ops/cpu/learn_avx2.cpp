#include "learn_kernel.h"

namespace pellucid {

extern const Learn kLearnAvx2[2];
const Learn kLearnAvx2[2] = {learn_of<float>(), learn_of<Bf16>()};

}  // namespace pellucid
