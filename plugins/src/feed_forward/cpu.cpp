// A simple body, until the real one is here.
#include <cmath>
#include <vector>

#include "shared/cpu.h"

namespace ribsr::RIBSR_ISA {

static RibsrMap whole(std::vector<float> &data, int64_t h, int64_t w, int64_t c) {
  return {data.data(), h * w * c, 1, w * c, c};
}

int32_t feed_forward(const RibsrFeedForwardParams &p, const RibsrExecutor &e) noexcept {
  std::vector<float> n(1ll * p.batch * p.height * p.width * p.channels), d(1ll * p.batch * p.height * p.width * p.hidden);
  const RibsrMap normed = whole(n, p.height, p.width, p.channels);
  RibsrLayerNormParams l{};
  l.batch = p.batch, l.channels = p.channels, l.height = p.height, l.width = p.width, l.epsilon = p.epsilon;
  l.in = p.in, l.out = normed, l.weight = p.norm_weight, l.bias = p.norm_bias;
  layer_norm(l, e);
  const RibsrMap mixed = whole(d, p.height, p.width, p.hidden);
  std::vector<float> u(d.size());
  const RibsrMap hidden = whole(u, p.height, p.width, p.hidden);
  RibsrConvolutionParams v{};
  v.batch = p.batch, v.channels = p.channels, v.outputs = p.hidden, v.kernel = 1, v.height = p.height, v.width = p.width;
  v.negative_slope = 1, v.in = normed, v.out = hidden, v.weight = p.expand_weight, v.bias = p.expand_bias;
  convolution(v, e);
  RibsrDepthwiseParams g{};
  g.input_gelu = 1, g.epilogue = 1, g.batch = p.batch, g.channels = p.hidden, g.height = p.height, g.width = p.width;
  g.in = hidden, g.out = mixed, g.weight = p.depthwise_weight, g.bias = p.depthwise_bias;
  depthwise(g, e);
  v = RibsrConvolutionParams{};
  v.batch = p.batch, v.channels = p.hidden, v.outputs = p.channels, v.kernel = 1, v.height = p.height, v.width = p.width;
  v.negative_slope = 1, v.in = mixed, v.out = p.out, v.weight = p.contract_weight, v.bias = p.contract_bias;
  v.residual = p.in;
  convolution(v, e);
  return RIBSR_OK;
}

}  // namespace ribsr::RIBSR_ISA
