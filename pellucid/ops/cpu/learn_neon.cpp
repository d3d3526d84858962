#include "learn_kernel.h"

namespace pellucid {

extern const Learn kLearnNeon[2];
const Learn kLearnNeon[2] = {learn_of<float>(), learn_of<Bf16>()};

}  // namespace pellucid
