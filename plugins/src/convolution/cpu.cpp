// ribsr_convolution on CPUs: a dense convolution as products of rows of pixels with packed weights.
//
// A task walks down a tile and keeps the last rows of `in` as factors, with a column more at either end: zeros where the map
// ends. There the three pixels of a row of taps are neighbours, so that their channels are one run of three times as many
// factors, and the next pixel's run begins one pixel further on: nothing is copied for taps.
#include "shared/gemm.h"
#include "shared/taps.h"

namespace ribsr::RIBSR_ISA {

namespace {

template <class Factor>
class Layer {
 public:
  explicit Layer(const RibsrConvolutionParams &params)
      : params_(params),
        weights_(static_cast<const float *>(params.weight), static_cast<const float *>(params.bias), params.outputs,
                 params.kernel * params.kernel, params.channels) {}

  int32_t run(const RibsrExecutor &executor) const {
    if (!weights_.has_memory()) return RIBSR_UNSUPPORTED;
    const Tiles tiles(params_.batch, params_.height, params_.width, cached_columns(4 * channels_), executor.threads);
    const size_t floats = Ring::floats(tiles.columns(), channels_) + 2 * kLanes;
    return for_tiles(executor, tiles, floats, [&](const Tile &tile, float *memory) { walk(tile, memory); });
  }

 private:
  void walk(const Tile &tile, float *memory) const {
    const Ring ring(memory, tile, params_.height, params_.width, channels_);
    const int halo = params_.kernel / 2;
    for (int y = tile.y0 - halo; y < tile.y1 + halo; ++y) {
      ring.advance(y, [&](float *to, int x, int pixels) { copy(pixel(params_.in, tile.batch, y, x), pixels, to); });
      factors<Factor>(ring.row(y), static_cast<size_t>(ring.row_floats()));
      if (y >= tile.y0 + halo) multiply(tile, y - halo, ring);
    }
  }

  void copy(const float *from, int pixels, float *to) const {
    const size_t bytes = sizeof(float) * static_cast<size_t>(params_.channels);
    if (params_.in.column_stride == channels_ && params_.channels == channels_) {
      std::memcpy(to, from, bytes * static_cast<size_t>(pixels));
    } else {
      std::memset(to, 0, sizeof(float) * static_cast<size_t>(pixels) * channels_);
      for (int p = 0; p < pixels; ++p) std::memcpy(to + p * channels_, from + p * params_.in.column_stride, bytes);
    }
  }

  void multiply(const Tile &tile, int y, const Ring &ring) const {
    const RibsrMap &out = params_.out, &residual = params_.residual;
    Target target{writable(out, tile.batch, y, tile.x0), out.column_stride};
    target.negative_slope = params_.negative_slope;
    if (residual.data != nullptr) {
      target.residual = pixel(residual, tile.batch, y, tile.x0);
      target.residual_stride = residual.column_stride;
    }
    const auto row = [&](int y) { return reinterpret_cast<const Factor *>(ring.row(y)); };
    const ptrdiff_t stride = channels_ / kWide<Factor>;
    if (params_.kernel == 1)
      product<Factor>({{row(y) + stride}, 1, stride}, tile.columns(), weights_, target);
    else
      product<Factor>({{row(y - 1), row(y), row(y + 1)}, 3, stride}, tile.columns(), weights_, target);
  }

  const RibsrConvolutionParams &params_;
  const int channels_ = static_cast<int>(divided_up(params_.channels, kWide<Factor>)) * kWide<Factor>;
  const Packed<Factor> weights_;
};

}  // namespace

int32_t convolution(const RibsrConvolutionParams &params, const RibsrExecutor &executor) noexcept {
  return executor.bfloat16_products ? Layer<uint32_t>(params).run(executor) : Layer<float>(params).run(executor);
}

}  // namespace ribsr::RIBSR_ISA
