// What this machine's processor can do, asked at run time.
#pragma once

namespace pellucid {

struct Features {
  bool avx2, avx512_vnni, avx512_bf16, amx_int8, amx_bf16, neon_dot;
};

const Features& features();

// Processors this process may run on; at least 1.
int usable_cores();

}  // namespace pellucid
