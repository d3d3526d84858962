// AVX2 with FMA and F16C: the kernels over vectors of floats.
#include "attend_kernel.h"
#include "rows_kernel.h"
#include "stored_kernel.h"

namespace pellucid {

extern const Lanes kLanesAvx2;
const Lanes kLanesAvx2{"avx2", attend, normalize, rotate, gate, scale, add, largest, halve, quantize_row, multiply_dense, unpack_rows};

}  // namespace pellucid
