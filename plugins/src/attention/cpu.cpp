// A simple body, until the real one is here.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "shared/cpu.h"

namespace ribsr::RIBSR_ISA {

static float *at(const RibsrMap &m, int64_t b, int64_t y, int64_t x) {
  return static_cast<float *>(m.data) + b * m.batch_stride + y * m.row_stride + x * m.column_stride;
}

static int64_t reflected(int64_t i, int64_t n) {
  const int64_t period = n > 1 ? 2 * (n - 1) : 1;
  return (n - 1) - std::abs((n - 1) - i % period);
}

int32_t attention(const RibsrAttentionParams &p, const RibsrExecutor &e) noexcept {
  const int64_t wy = (p.height + p.window_height - 1) / p.window_height, wx = (p.width + p.window_width - 1) / p.window_width;
  const int64_t hh = wy * p.window_height, ww = wx * p.window_width, n = 1ll * p.window_height * p.window_width;
  const int d = p.head_width, c = p.heads * d;
  parallel(e, p.batch * wy * wx * p.heads, [&](int64_t task) {
    const int64_t h = task % p.heads, x0 = task / p.heads % wx, y0 = task / p.heads / wx % wy, b = task / p.heads / wx / wy;
    const auto *rq = static_cast<const float *>(p.rib_q) + h * n * p.rank;
    const auto *rk = static_cast<const float *>(p.rib_k) + h * n * p.rank;
    std::vector<const float *> token(n);
    std::vector<int64_t> ys(n), xs(n);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t y = y0 * p.window_height + i / p.window_width, x = x0 * p.window_width + i % p.window_width;
      ys[i] = ((y + p.shift_y) % hh + hh) % hh, xs[i] = ((x + p.shift_x) % ww + ww) % ww;
      token[i] = at(p.qkv, b, reflected(ys[i], p.height), reflected(xs[i], p.width)) + h * d;
    }
    std::vector<float> score(n), out(d);
    for (int64_t i = 0; i < n; ++i) {
      if (ys[i] >= p.height || xs[i] >= p.width) continue;
      float most = -INFINITY, sum = 0;
      for (int64_t j = 0; j < n; ++j) {
        float s = 0;
        for (int k = 0; k < d; ++k) s += token[i][k] * token[j][c + k];
        for (int k = 0; k < p.rank; ++k) s += rq[i * p.rank + k] * rk[j * p.rank + k];
        score[j] = s * p.scale;
        most = std::fmax(most, score[j]);
      }
      std::fill(out.begin(), out.end(), 0.0f);
      for (int64_t j = 0; j < n; ++j) {
        const float v = std::exp(score[j] - most);
        sum += v;
        for (int k = 0; k < d; ++k) out[k] += v * token[j][2 * c + k];
      }
      const float *gate = at(p.gate, b, ys[i], xs[i]) + h * d;
      float *o = at(p.out, b, ys[i], xs[i]) + h * d;
      for (int k = 0; k < d; ++k) o[k] = out[k] / sum * (p.gate_sigmoid ? 1 / (1 + std::exp(-gate[k])) : gate[k]);
    }
  });
  return RIBSR_OK;
}

}  // namespace ribsr::RIBSR_ISA
