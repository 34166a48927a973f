// What the attention kernels are told about one call. Plain data, filled on the host by interface.cu.
#pragma once

#include <stdint.h>

#include "shared/map.h"

namespace ribsr {

struct Shape {
  int heads, head_width, rank;
  int height, width;                 // of the picture
  int padded_height, padded_width;   // multiples of the window
  int window_height, window_width, tokens;
  int windows_y, windows_x;
  int shift_y, shift_x;              // 0 <= shift < padded size
  unsigned row_magic;                // n / window_width == mulhi(n, row_magic)
  int units;                         // batch * windows * heads
  int query_blocks;                  // per unit
  int items;                         // what the grid walks over
  int vectorised;                    // 16-byte loads and stores are possible
  int gate_sigmoid;                  // the gate is what comes in through the logistic function
  float exponent_scale;              // scale * log2(e)
  Map qkv, gate, out;
  const uint16_t *rib_q, *rib_k;
};

}  // namespace ribsr
