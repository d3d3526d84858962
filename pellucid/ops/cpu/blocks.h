// The blocks of GGUF files, as ops/unpack.py says they are: the structs of ggml-common.h.
#pragma once
#include <cstdint>

#include "packed.h"

namespace pellucid {

// One block of a row, read: half floats as bits (or MXFP4's exponent), the groups' scales and minima, and codes without a sign.
struct Block {
  uint16_t scale, minimum;
  int8_t scales[16], minima[16];
  uint8_t codes[256];
};

using Read = void (*)(const uint8_t* from, Block& to);
extern const Read kRead[kFormats];

}  // namespace pellucid
