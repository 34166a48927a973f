// ribsr_attention: checks, path choice, launch.
#include "attention/launch.h"
#include "shared/interface.h"

using namespace ribsr;

namespace {

int round_up(int size, int multiple) { return (size + multiple - 1) / multiple * multiple; }

int32_t describe(const RibsrAttentionParams *params, Shape *shape) {
  int32_t code = check_common(params);
  if (code == RIBSR_OK) code = check_path(params->path);
  if (code != RIBSR_OK) return code;
  const RibsrAttentionParams &p = *params;
  RIBSR_CHECK(p.heads > 0 && p.head_width > 0 && p.head_width <= 64 && p.rank > 0 && p.rank <= 64,
              "heads, head_width, rank are %d, %d, %d: heads must be positive, the others 1 to 64", p.heads,
              p.head_width, p.rank);
  RIBSR_CHECK(p.window_height >= 2 && p.window_height <= 128 && p.window_width >= 2 && p.window_width <= 128,
              "the window is %d x %d: each side must be 2 to 128", p.window_height, p.window_width);
  RIBSR_CHECK(p.scale > 0.0f, "scale is %g: it must be positive", static_cast<double>(p.scale));
  RIBSR_CHECK(p.gate_sigmoid == 0 || p.gate_sigmoid == 1, "gate_sigmoid is %d: it must be 0 or 1", p.gate_sigmoid);
  RIBSR_CHECK(p.qkv.data && p.gate.data && p.out.data && p.rib_q && p.rib_k, "an array is null");

  Shape &s = *shape;
  s.heads = p.heads;
  s.head_width = p.head_width;
  s.rank = p.rank;
  s.height = p.height;
  s.width = p.width;
  s.window_height = p.window_height;
  s.window_width = p.window_width;
  s.padded_height = round_up(p.height, p.window_height);
  s.padded_width = round_up(p.width, p.window_width);
  s.tokens = p.window_height * p.window_width;
  s.windows_y = s.padded_height / p.window_height;
  s.windows_x = s.padded_width / p.window_width;
  s.shift_y = (p.shift_y % s.padded_height + s.padded_height) % s.padded_height;
  s.shift_x = (p.shift_x % s.padded_width + s.padded_width) % s.padded_width;
  s.row_magic = static_cast<unsigned>((1ull << 32) / p.window_width + 1);  // exact for n < 2^14 and widths to 2^7
  const long long units = 1ll * p.batch * s.windows_y * s.windows_x * p.heads;
  RIBSR_CHECK(units * ((s.tokens + 63) / 64) < (1ll << 31), "the map is too large: %lld windows times heads", units);
  s.units = static_cast<int>(units);
  s.query_blocks = s.items = 0;  // each launcher's own
  s.exponent_scale = p.scale * 1.4426950408889634f;
  s.qkv = map_of(p.qkv);
  s.gate = map_of(p.gate);
  s.out = map_of(p.out);
  s.gate_sigmoid = p.gate_sigmoid;
  s.rib_q = static_cast<const uint16_t *>(p.rib_q);
  s.rib_k = static_cast<const uint16_t *>(p.rib_k);
  s.vectorised = p.head_width % 8 == 0 && vectorised(p.qkv, p.height, p.width) &&
                 vectorised(p.gate, p.height, p.width) && vectorised(p.out, p.height, p.width);
  return RIBSR_OK;
}

bool hopper_takes(const Shape &s) {
  const bool widths = (s.head_width == 16 || s.head_width == 32) && (s.rank == 16 || s.rank == 24 || s.rank == 32);
  const bool factors = reinterpret_cast<uintptr_t>(s.rib_q) % 16 == 0 && reinterpret_cast<uintptr_t>(s.rib_k) % 16 == 0;
  return s.vectorised && widths && factors;
}

int32_t choose(const RibsrAttentionParams &params, const Shape &shape, int32_t *path, int *multiprocessors) {
  Device device;
  const int32_t code = current_device(&device);
  if (code != RIBSR_OK) return code;
  const bool hopper = is_hopper(device) && hopper_takes(shape);
  if (params.path == RIBSR_PATH_HOPPER && !hopper) {
    return fail(RIBSR_UNSUPPORTED,
                "the Hopper path was asked for, but needs compute capability 9.0 (here %d.%d), channels-last maps "
                "aligned to 8 channels, head width 16 or 32 (here %d) and rank 16, 24 or 32 (here %d)",
                device.major, device.minor, shape.head_width, shape.rank);
  }
  *path = params.path != RIBSR_PATH_AUTO ? params.path : hopper ? RIBSR_PATH_HOPPER : RIBSR_PATH_PORTABLE;
  *multiprocessors = device.multiprocessors;
  return RIBSR_OK;
}

}  // namespace

extern "C" {

int32_t ribsr_attention(const RibsrAttentionParams *params, void *stream) {
  clear_message();
  Shape shape;
  int32_t path = 0;
  int multiprocessors = 0;
  int32_t code = describe(params, &shape);
  if (code == RIBSR_OK) code = choose(*params, shape, &path, &multiprocessors);
  if (code != RIBSR_OK) return code;
  const auto on = static_cast<cudaStream_t>(stream);
  const bool fp16 = params->dtype == RIBSR_FLOAT16;
  cudaError_t error;
  if (path == RIBSR_PATH_HOPPER) {
    error = fp16 ? launch_hopper_fp16(shape, multiprocessors, on) : launch_hopper_bf16(shape, multiprocessors, on);
  } else {
    error = fp16 ? launch_portable_fp16(shape, on) : launch_portable_bf16(shape, on);
  }
  return launched(error);
}

int32_t ribsr_attention_path(const RibsrAttentionParams *params, int32_t *path) {
  clear_message();
  Shape shape;
  int multiprocessors = 0;
  const int32_t code = describe(params, &shape);
  if (code != RIBSR_OK) return code;
  RIBSR_CHECK(path != nullptr, "path is null");
  return choose(*params, shape, path, &multiprocessors);
}

}  // extern "C"
