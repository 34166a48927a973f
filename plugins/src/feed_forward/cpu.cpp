// ribsr_feed_forward on CPUs: the feed-forward half of a layer, x + contract(u + gelu(depthwise(u))) of
// u = gelu(expand(norm(x))), without any map in memory but x and the sum.
//
// A task walks down a tile. Of u it keeps three rows, with a column more at either end; when the next one is there, the row
// above it goes through the depthwise convolution and `contract`. So only the tile's border is computed twice: for a tile
// of 32 rows and 64 columns 10 % of `expand`'s products, where a ring of three rows costs nothing else.
#include <algorithm>

#include "shared/gelu.h"
#include "shared/gemm.h"
#include "shared/norm.h"
#include "shared/taps.h"

namespace ribsr::RIBSR_ISA {

namespace {

template <class Factor>
class Layer {
 public:
  explicit Layer(const RibsrFeedForwardParams &params)
      : params_(params),
        norm_{static_cast<const float *>(params.norm_weight), static_cast<const float *>(params.norm_bias), params.channels,
              params.epsilon},
        expand_(static_cast<const float *>(params.expand_weight), static_cast<const float *>(params.expand_bias),
                params.hidden, 1, params.channels),
        taps_(static_cast<const float *>(params.depthwise_weight), static_cast<const float *>(params.depthwise_bias),
              params.hidden),
        contract_(static_cast<const float *>(params.contract_weight), static_cast<const float *>(params.contract_bias),
                  params.channels, 1, params.hidden) {}

  int32_t run(const RibsrExecutor &executor) const {
    if (!expand_.has_memory() || !taps_.has_memory() || !contract_.has_memory()) return RIBSR_UNSUPPORTED;
    const int columns = cached_columns(4 * hidden_);
    const Tiles tiles(params_.batch, params_.height, params_.width, columns, executor.threads);
    const size_t row = row_floats(tiles.columns() + 2, std::max(hidden_, channels_));
    const size_t floats = Ring::floats(tiles.columns(), hidden_) + row;
    return for_tiles(executor, tiles, floats, [&](const Tile &tile, float *memory) { walk(tile, memory); });
  }

 private:
  void walk(const Tile &tile, float *memory) const {
    const Ring u(memory, tile, params_.height, params_.width, hidden_);
    float *row = memory + Ring::floats(tile.columns(), hidden_);
    for (int y = tile.y0 - 1; y <= tile.y1; ++y) {
      u.advance(y, [&](float *to, int x, int pixels) { expand(tile.batch, y, x, pixels, row, to); });
      if (y > tile.y0) contract(tile, y - 1, u, row);
    }
  }

  // u of pixels in a row. normed: memory for them.
  void expand(int batch, int y, int x, int pixels, float *normed, float *u) const {
    norm_(pixel(params_.in, batch, y, x), params_.in.column_stride, pixels,
          [&](int p, int c, Vector value) { store(normed + p * channels_ + c, value); });
    product_of_row(normed, pixels, channels_, expand_, {u, hidden_});
    // Lanes behind the last are multiplied by zeros later: whatever lies in a thread's memory, NaN as well, must not stay.
    const int lacking = hidden_ - params_.hidden;
    for (int p = 1; lacking > 0 && p <= pixels; ++p) std::fill_n(u + p * hidden_ - lacking, lacking, 0.0f);
    for (int i = 0; i < pixels * hidden_; i += kLanes) store(u + i, gelu<Factor>(load(u + i)));
  }

  // The sum of a row of the tile. row: memory for what goes into `contract`.
  void contract(const Tile &tile, int y, const Ring &u, float *row) const {
    taps_(u.row(y - 1), u.row(y), u.row(y + 1), tile.columns(), [&](int x, int c, Vector sum, Vector centre) {
      store(row + x * hidden_ + c, centre + gelu<Factor>(sum));
    });
    const RibsrMap &in = params_.in, &out = params_.out;
    product_of_row(row, tile.columns(), hidden_, contract_,
                   {writable(out, tile.batch, y, tile.x0), out.column_stride, pixel(in, tile.batch, y, tile.x0),
                    in.column_stride});
  }

  const RibsrFeedForwardParams &params_;
  const int channels_ = padded(params_.channels), hidden_ = padded(params_.hidden);
  const Norm norm_;
  const Packed<Factor> expand_;
  const Taps taps_;
  const Packed<Factor> contract_;
};

}  // namespace

int32_t feed_forward(const RibsrFeedForwardParams &params, const RibsrExecutor &executor) noexcept {
  return executor.bfloat16_products ? Layer<uint32_t>(params).run(executor) : Layer<float>(params).run(executor);
}

}  // namespace ribsr::RIBSR_ISA
