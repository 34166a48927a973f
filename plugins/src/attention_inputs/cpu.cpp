// A simple body, until the real one is here.
#include <cmath>
#include <vector>

#include "shared/cpu.h"

namespace ribsr::RIBSR_ISA {

static RibsrMap whole(std::vector<float> &data, int64_t h, int64_t w, int64_t c) {
  return {data.data(), h * w * c, 1, w * c, c};
}

int32_t attention_inputs(const RibsrAttentionInputsParams &p, const RibsrExecutor &e) noexcept {
  std::vector<float> n(1ll * p.batch * p.height * p.width * p.channels), d(1ll * p.batch * p.height * p.width * p.channels);
  const RibsrMap normed = whole(n, p.height, p.width, p.channels);
  RibsrLayerNormParams l{};
  l.batch = p.batch, l.channels = p.channels, l.height = p.height, l.width = p.width, l.epsilon = p.epsilon;
  l.in = p.in, l.out = normed, l.weight = p.norm_weight, l.bias = p.norm_bias;
  layer_norm(l, e);
  const RibsrMap mixed = whole(d, p.height, p.width, p.channels);
  RibsrDepthwiseParams g{};
  g.input_gelu = 0, g.epilogue = 0, g.batch = p.batch, g.channels = p.channels, g.height = p.height, g.width = p.width;
  g.in = normed, g.out = mixed, g.weight = p.depthwise_weight, g.bias = p.depthwise_bias;
  depthwise(g, e);
  RibsrConvolutionParams v{};
  v.batch = p.batch, v.channels = p.channels, v.outputs = 3 * p.channels, v.kernel = 1, v.height = p.height, v.width = p.width;
  v.negative_slope = 1, v.in = normed, v.out = p.qkv, v.weight = p.project_weight, v.bias = p.project_bias;
  convolution(v, e);
  v = RibsrConvolutionParams{};
  v.batch = p.batch, v.channels = p.channels, v.outputs = p.channels, v.kernel = 1, v.height = p.height, v.width = p.width;
  v.negative_slope = 1, v.in = mixed, v.out = p.gate, v.weight = p.mix_weight, v.bias = p.mix_bias;
  convolution(v, e);
  return RIBSR_OK;
}

}  // namespace ribsr::RIBSR_ISA
