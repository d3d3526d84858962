#include "processor.h"

#include <thread>

#ifdef __linux__
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace pellucid {
namespace {

#if defined(__x86_64__)
// AMX-BF16, AMX-TILE and AMX-INT8: leaf 7, bits 22, 24 and 25 of EDX. Not every compiler's own test knows them.
bool has_amx(int bit) {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) && (d >> bit & 1);
}
#endif

// The compiler's own test asks the processor and the system: registers that the system does not save are not there.
Features find() {
  Features found{};
#if defined(__x86_64__)
  __builtin_cpu_init();
  found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  found.avx512_vnni = found.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  found.avx512_bf16 = found.avx512_vnni && __builtin_cpu_supports("avx512bf16");
#ifdef __linux__
  // The system must be asked for the tiles' registers, once a process: ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA,
  // https://docs.kernel.org/arch/x86/xstate.html
  found.amx_int8 = found.avx512_vnni && has_amx(25) && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  found.amx_bf16 = found.amx_int8 && has_amx(22);
#endif
#elif defined(__aarch64__) && defined(__linux__)
  found.neon_dot = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) && (getauxval(AT_HWCAP) & HWCAP_ASIMDHP);
#elif defined(__aarch64__) && defined(__APPLE__)
  found.neon_dot = true;  // every Apple processor with this instruction set has both
#endif
  return found;
}

}  // namespace

const Features& features() {
  static const Features found = find();
  return found;
}

int usable_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n ? static_cast<int>(n) : 1;
}

}  // namespace pellucid
