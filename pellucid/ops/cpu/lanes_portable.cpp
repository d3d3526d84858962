// Every processor: the kernels over vectors of floats.
#include "attend_kernel.h"
#include "rows_kernel.h"
#include "stored_kernel.h"

namespace pellucid {

extern const Lanes kLanesPortable;
const Lanes kLanesPortable{"portable", attend, normalize, rotate, gate, scale, add, largest, halve, quantize_row, multiply_dense, unpack_rows};

}  // namespace pellucid
