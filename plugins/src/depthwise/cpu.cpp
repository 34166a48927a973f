// ribsr_depthwise on CPUs: see shared/taps.h. A task walks down a tile and copies every row of it once, gelu and all, into a
// ring of three that has zeros where the map ends.
#include "shared/gelu.h"
#include "shared/taps.h"
#include "shared/tiles.h"

namespace ribsr::RIBSR_ISA {

namespace {

// to: pixels of whole vectors.
void copy(const float *from, ptrdiff_t stride, int pixels, int channels, bool with_gelu, float *to) {
  for (int p = 0; p < pixels; ++p, from += stride)
    for (int c = 0; c < channels; c += kLanes, to += kLanes) {
      const Vector x = load_up_to(from + c, channels - c);
      store(to, with_gelu ? gelu<float>(x) : x);
    }
}

void walk(const RibsrDepthwiseParams &params, const Taps &taps, const Tile &tile, float *memory) {
  const int channels = params.channels;
  const Ring ring(memory, tile, params.height, params.width, padded(channels));
  const Gap gap(params.out, channels);
  for (int y = tile.y0 - 1; y <= tile.y1; ++y) {
    ring.advance(y, [&](float *to, int x, int pixels) {
      copy(pixel(params.in, tile.batch, y, x), params.in.column_stride, pixels, channels, params.input_gelu != 0, to);
    });
    if (y <= tile.y0) continue;
    float *out = writable(params.out, tile.batch, y - 1, tile.x0);
    const bool adds = params.epilogue == RIBSR_EPILOGUE_ADD_GELU;
    taps(ring.row(y - 2), ring.row(y - 1), ring.row(y), tile.columns(), [&](int x, int c, Vector sum, Vector centre) {
      const Vector value = adds ? centre + gelu<float>(sum) : sum;
      store_up_to(out + x * params.out.column_stride + c, value, channels - c);
    });
    gap.clear(out, tile.columns());
  }
}

}  // namespace

int32_t depthwise(const RibsrDepthwiseParams &params, const RibsrExecutor &executor) noexcept {
  const Taps taps(static_cast<const float *>(params.weight), static_cast<const float *>(params.bias), params.channels);
  if (!taps.has_memory()) return RIBSR_UNSUPPORTED;
  const int channels = padded(params.channels);
  const Tiles tiles(params.batch, params.height, params.width, cached_columns(4 * channels), executor.threads);
  return for_tiles(executor, tiles, Ring::floats(tiles.columns(), channels),
                   [&](const Tile &tile, float *memory) { walk(params, taps, tile, memory); });
}

}  // namespace ribsr::RIBSR_ISA
