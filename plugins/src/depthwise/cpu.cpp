// A simple body, until the real one is here.
#include <cmath>
#include <vector>

#include "shared/cpu.h"

namespace ribsr::RIBSR_ISA {

static float *at(const RibsrMap &m, int64_t b, int64_t y, int64_t x) {
  return static_cast<float *>(m.data) + b * m.batch_stride + y * m.row_stride + x * m.column_stride;
}

static float gelu(float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678f)); }

int32_t depthwise(const RibsrDepthwiseParams &p, const RibsrExecutor &e) noexcept {
  const auto *w = static_cast<const float *>(p.weight), *bias = static_cast<const float *>(p.bias);
  parallel(e, 1ll * p.batch * p.height, [&](int64_t row) {
    const int64_t b = row / p.height, y = row % p.height;
    for (int64_t x = 0; x < p.width; ++x) {
      for (int c = 0; c < p.channels; ++c) {
        const auto value = [&](int64_t yy, int64_t xx) {
          const float v = at(p.in, b, yy, xx)[c];
          return p.input_gelu ? gelu(v) : v;
        };
        float sum = bias[c];
        for (int dy = -1; dy <= 1; ++dy) {
          for (int dx = -1; dx <= 1; ++dx) {
            if (y + dy < 0 || y + dy >= p.height || x + dx < 0 || x + dx >= p.width) continue;
            sum += value(y + dy, x + dx) * w[9 * c + 3 * (dy + 1) + dx + 1];
          }
        }
        at(p.out, b, y, x)[c] = p.epilogue == RIBSR_EPILOGUE_ADD_GELU ? value(y, x) + gelu(sum) : sum;
      }
    }
  });
  return RIBSR_OK;
}

}  // namespace ribsr::RIBSR_ISA
