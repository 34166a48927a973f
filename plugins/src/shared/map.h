// A [batch, channel, height, width] map, as kernels are told of it.
#pragma once

#include <stdint.h>

namespace ribsr {

// Strides in elements; `data` holds fp16 or bf16 bit patterns.
struct Map {
  uint16_t *data;
  long long batch, channel, row, column;
};

}  // namespace ribsr
