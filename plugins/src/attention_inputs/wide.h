// What the kernels of wide layers are told about a call.
#pragma once

#include "shared/interface.h"

namespace ribsr {

// For the kernel that arranges them in the workspace.
struct InputsWeights {
  const uint16_t *norm_weight, *norm_bias, *project_weight, *project_bias, *depthwise_weight, *depthwise_bias;
  const uint16_t *mix_weight, *mix_bias;
  uint8_t *workspace;
};

struct InputsProblem {
  Map in, qkv, gate;
  const uint8_t *workspace;
  int height, width;
  int tiles_x, tiles_y, tiles;
  float epsilon;
};

inline InputsWeights weights_of(const RibsrAttentionInputsParams &p) {
  const auto weights = [](const void *data) { return static_cast<const uint16_t *>(data); };
  return {weights(p.norm_weight),      weights(p.norm_bias),      weights(p.project_weight), weights(p.project_bias),
          weights(p.depthwise_weight), weights(p.depthwise_bias), weights(p.mix_weight),     weights(p.mix_bias),
          static_cast<uint8_t *>(p.workspace)};
}

// All but its tiles.
inline InputsProblem problem_of(const RibsrAttentionInputsParams &p) {
  InputsProblem problem{};
  problem.in = map_of(p.in);
  problem.qkv = map_of(p.qkv);
  problem.gate = map_of(p.gate);
  problem.workspace = static_cast<const uint8_t *>(p.workspace);
  problem.height = p.height;
  problem.width = p.width;
  problem.epsilon = p.epsilon;
  return problem;
}

}  // namespace ribsr
