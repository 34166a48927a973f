// ribsr_layer_norm on CPUs: see shared/norm.h.
#include "shared/norm.h"
#include "shared/tiles.h"

namespace ribsr::RIBSR_ISA {

int32_t layer_norm(const RibsrLayerNormParams &params, const RibsrExecutor &executor) noexcept {
  const Norm norm{static_cast<const float *>(params.weight), static_cast<const float *>(params.bias), params.channels,
                  params.epsilon};
  const Gap gap(params.out, params.channels);
  const Tiles tiles(params.batch, params.height, params.width, params.width, executor.threads);
  parallel(executor, tiles.count(), [&](int64_t index) {
    const Tile tile = tiles[index];
    for (int y = tile.y0; y < tile.y1; ++y) {
      float *out = writable(params.out, tile.batch, y, tile.x0);
      norm(pixel(params.in, tile.batch, y, tile.x0), params.in.column_stride, tile.columns(),
           [&](int p, int c, Vector value) {
             store_up_to(out + p * params.out.column_stride + c, value, params.channels - c);
           });
      gap.clear(out, tile.columns());
    }
  });
  return RIBSR_OK;
}

}  // namespace ribsr::RIBSR_ISA
