// ribsr_attention_inputs on CPUs: project(n) and mix(depthwise(n)) with n = norm(in), where n is never in memory.
//
// A task walks down a tile and keeps three rows of n, with a column more at either end. A new row, while it is in the
// nearest cache, goes through `project`; then the row above it through the depthwise convolution and `mix`.
#include "shared/gemm.h"
#include "shared/norm.h"
#include "shared/taps.h"

namespace ribsr::RIBSR_ISA {

namespace {

template <class Factor>
class Layer {
 public:
  explicit Layer(const RibsrAttentionInputsParams &params)
      : params_(params),
        norm_{static_cast<const float *>(params.norm_weight), static_cast<const float *>(params.norm_bias), params.channels,
              params.epsilon},
        project_(static_cast<const float *>(params.project_weight), static_cast<const float *>(params.project_bias),
                 3 * params.channels, 1, params.channels),
        taps_(static_cast<const float *>(params.depthwise_weight), static_cast<const float *>(params.depthwise_bias),
              params.channels),
        mix_(static_cast<const float *>(params.mix_weight), static_cast<const float *>(params.mix_bias), params.channels, 1,
             params.channels) {}

  int32_t run(const RibsrExecutor &executor) const {
    if (!project_.has_memory() || !taps_.has_memory() || !mix_.has_memory()) return RIBSR_UNSUPPORTED;
    const Tiles tiles(params_.batch, params_.height, params_.width, cached_columns(8 * channels_), executor.threads);
    const size_t floats = Ring::floats(tiles.columns(), channels_) + row_floats(tiles.columns(), channels_);
    return for_tiles(executor, tiles, floats, [&](const Tile &tile, float *memory) { walk(tile, memory); });
  }

 private:
  void walk(const Tile &tile, float *memory) const {
    const Ring n(memory, tile, params_.height, params_.width, channels_);
    float *row = memory + Ring::floats(tile.columns(), channels_);
    const RibsrMap &in = params_.in;
    for (int y = tile.y0 - 1; y <= tile.y1; ++y) {
      n.advance(y, [&](float *to, int x, int pixels) {
        norm_(pixel(in, tile.batch, y, x), in.column_stride, pixels,
              [&](int p, int c, Vector value) { store(to + p * channels_ + c, value); });
      });
      if (y >= tile.y0 && y < tile.y1) {
        std::memcpy(row, n.row(y) + channels_, sizeof(float) * static_cast<size_t>(tile.columns()) * channels_);
        multiply(project_, tile, y, row, params_.qkv);
      }
      if (y > tile.y0) {
        taps_(n.row(y - 2), n.row(y - 1), n.row(y), tile.columns(),
              [&](int x, int c, Vector sum, Vector) { store(row + x * channels_ + c, sum); });
        multiply(mix_, tile, y - 1, row, params_.gate);
      }
    }
  }

  // A row of the tile in `out`, from channels that become factors where they are.
  void multiply(const Packed<Factor> &weights, const Tile &tile, int y, float *row, const RibsrMap &out) const {
    product_of_row(row, tile.columns(), channels_, weights, {writable(out, tile.batch, y, tile.x0), out.column_stride});
  }

  const RibsrAttentionInputsParams &params_;
  const int channels_ = padded(params_.channels);
  const Norm norm_;
  const Packed<Factor> project_;
  const Taps taps_;
  const Packed<Factor> mix_;
};

}  // namespace

int32_t attention_inputs(const RibsrAttentionInputsParams &params, const RibsrExecutor &executor) noexcept {
  return executor.bfloat16_products ? Layer<uint32_t>(params).run(executor) : Layer<float>(params).run(executor);
}

}  // namespace ribsr::RIBSR_ISA
