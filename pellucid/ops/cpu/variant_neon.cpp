// NEON with products of bytes (ARMv8.2's dot product): a quarter of a panel at a time.
#include <arm_neon.h>

#include "kernel.h"

namespace pellucid {
namespace {

struct Neon {
  static constexpr int kLanes = 4, kTile = 8;
  static constexpr bool kSigned = true;
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));

  template <class T>
  static T read(const uint8_t* p) {
    T out;
    __builtin_memcpy(&out, p, sizeof out);
    return out;
  }
  static F splat(float x) { return (F)vdupq_n_f32(x); }
  static I splat(int x) { return (I)vdupq_n_s32(x); }
  static F to_float(I x) { return (F)vcvtq_f32_s32((int32x4_t)x); }
  static F fma(F a, F b, F c) { return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
  static F halves(const uint8_t* p) { return (F)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
  static F exponents(const uint8_t* p) { return F{half_power(p[0]), half_power(p[1]), half_power(p[2]), half_power(p[3])}; }
  static F bytes(const uint8_t* p) { return F{float(read<int8_t>(p)), float(read<int8_t>(p + 1)), float(read<int8_t>(p + 2)), float(read<int8_t>(p + 3))}; }
  static U look_up(U codes, const uint8_t (&table)[16]) { return (U)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)codes); }
  template <bool>
  static I dot(I sum, U codes, const uint8_t* x) {
    return (I)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, vreinterpretq_s8_s32(vdupq_n_s32(read<int>(x))));
  }
};

}  // namespace

extern const Variant kNeon;
constexpr Variant kNeon = make<Neon>("neon");

}  // namespace pellucid
