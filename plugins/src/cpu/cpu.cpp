// The kernels of one instruction set as a table.
#include "cpu/kernels.h"
#include "shared/cpu.h"

namespace ribsr::RIBSR_ISA {

extern const Kernels kernels = {attention, layer_norm, depthwise, feed_forward, attention_inputs, convolution};

}  // namespace ribsr::RIBSR_ISA
