// A simple body, until the real one is here.
#include <cmath>
#include <vector>

#include "shared/cpu.h"

namespace ribsr::RIBSR_ISA {

static float *at(const RibsrMap &m, int64_t b, int64_t y, int64_t x) {
  return static_cast<float *>(m.data) + b * m.batch_stride + y * m.row_stride + x * m.column_stride;
}

int32_t convolution(const RibsrConvolutionParams &p, const RibsrExecutor &e) noexcept {
  const auto *w = static_cast<const float *>(p.weight), *bias = static_cast<const float *>(p.bias);
  const int k = p.kernel, r = k / 2;
  parallel(e, 1ll * p.batch * p.height, [&](int64_t row) {
    const int64_t b = row / p.height, y = row % p.height;
    for (int64_t x = 0; x < p.width; ++x) {
      for (int o = 0; o < p.outputs; ++o) {
        float sum = 0;
        for (int dy = 0; dy < k; ++dy) {
          for (int dx = 0; dx < k; ++dx) {
            const int64_t yy = y + dy - r, xx = x + dx - r;
            if (yy < 0 || yy >= p.height || xx < 0 || xx >= p.width) continue;
            const float *in = at(p.in, b, yy, xx), *f = w + ((1ll * o * k + dy) * k + dx) * p.channels;
            for (int c = 0; c < p.channels; ++c) sum += in[c] * f[c];
          }
        }
        sum += bias[o];
        sum = sum < 0 ? sum * p.negative_slope : sum;
        at(p.out, b, y, x)[o] = p.residual.data ? sum + at(p.residual, b, y, x)[o] : sum;
      }
    }
  });
  return RIBSR_OK;
}

}  // namespace ribsr::RIBSR_ISA
