#include "runtimes/operators.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>

#include "ribsr_kernels.h"

namespace ribsr::runtimes {

static thread_local char line[768];

void complain(const char *format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
}

const char *complaint() noexcept { return line; }

bool succeeded(const char *name, int32_t status) noexcept {
  if (status != RIBSR_OK) complain("%s: %s", name, ribsr_error_message());
  return status == RIBSR_OK;
}

// Shapes and layouts

static long long dimension(const Tensor &tensor, int32_t index) noexcept { return tensor.dims[index]; }

static bool has_dimensions(const Tensor &tensor, int32_t count) noexcept {
  return tensor.rank == count;
}

static bool is_vector(const Tensor &tensor, long long length) noexcept {
  return has_dimensions(tensor, 1) && dimension(tensor, 0) == length;
}

static bool is_weight(const Tensor &tensor, long long outputs, long long inputs, long long side) noexcept {
  return has_dimensions(tensor, 4) && dimension(tensor, 0) == outputs && dimension(tensor, 1) == inputs &&
         dimension(tensor, 2) == side && dimension(tensor, 3) == side;
}

static int32_t size(const Tensor &tensor, int32_t index) noexcept {
  return static_cast<int32_t>(tensor.dims[index]);
}

// A map of `channels` channels with the batch, height, width and layout of `like`.
static RibsrMap map_of(const Tensor &like, int64_t channels, const void *data) noexcept {
  const int64_t height = like.dims[2], width = like.dims[3];
  RibsrMap map{};
  map.data = const_cast<void *>(data);
  if (like.layout != Layout::kLinear) {
    const int64_t pixel = like.layout == Layout::kPadded ? (channels + 7) / 8 * 8 : channels;
    map.batch_stride = height * width * pixel;
    map.channel_stride = 1;
    map.row_stride = width * pixel;
    map.column_stride = pixel;
  } else {
    map.batch_stride = channels * height * width;
    map.channel_stride = height * width;
    map.row_stride = width;
    map.column_stride = 1;
  }
  return map;
}

// What the parameters of all but the attention say of a map.
template <class Params>
static Params params_of(const Tensor &x) noexcept {
  Params params{};
  params.struct_size = sizeof(params);
  params.dtype = x.dtype;
  params.batch = size(x, 0);
  params.channels = size(x, 1);
  params.height = size(x, 2);
  params.width = size(x, 3);
  return params;
}

// CyclicWindowAttention

std::array<Attribute, 5> CyclicWindowAttention::attributes() const noexcept {
  return {{{"window", window, Kind::kInt32, 2},
           {"heads", &heads, Kind::kInt32, 1},
           {"shift", shift, Kind::kInt32, 2},
           {"scale", &scale, Kind::kFloat32, 1},
           {"gate_sigmoid", &gate_sigmoid, Kind::kInt32, 1}}};
}

bool CyclicWindowAttention::valid() const noexcept {
  for (const int32_t side : window) {
    if (side < 2 || side > 128) {
      complain("%s: attribute window is %d, %d: each side must be 2 to 128", name, window[0], window[1]);
      return false;
    }
  }
  if (heads < 1) {
    complain("%s: attribute heads is %d: it must be positive", name, heads);
    return false;
  }
  if (!(scale > 0.0f && std::isfinite(scale))) {
    complain("%s: attribute scale is %g: it must be positive", name, static_cast<double>(scale));
    return false;
  }
  if (gate_sigmoid != 0 && gate_sigmoid != 1) {
    complain("%s: attribute gate_sigmoid is %d: it must be 0 or 1", name, gate_sigmoid);
    return false;
  }
  return true;
}

bool CyclicWindowAttention::fits(const Tensor *in) const noexcept {
  const Tensor &qkv = in[0], &rib_q = in[1], &rib_k = in[2], &gate = in[3];
  if (!has_dimensions(qkv, 4) || !has_dimensions(gate, 4) || dimension(qkv, 1) != 3 * dimension(gate, 1)) {
    complain("%s: qkv (%d dimensions, %lld channels) is not 4-D with three times the channels of gate (%d, %lld)", name,
           qkv.rank, dimension(qkv, 1), gate.rank, dimension(gate, 1));
    return false;
  }
  for (const int32_t index : {0, 2, 3}) {
    if (dimension(qkv, index) != dimension(gate, index)) {
      complain("%s: dimension %d is %lld in qkv and %lld in gate", name, index, dimension(qkv, index),
             dimension(gate, index));
      return false;
    }
  }
  if (dimension(gate, 1) % heads != 0) {
    complain("%s: gate's %lld channels are no multiple of %d heads", name, dimension(gate, 1), heads);
    return false;
  }
  for (const Tensor *rib : {&rib_q, &rib_k}) {
    const long long tokens = 1ll * window[0] * window[1], rank = dimension(rib_q, 2);
    if (!has_dimensions(*rib, 3) || dimension(*rib, 0) != heads || dimension(*rib, 1) != tokens ||
        dimension(*rib, 2) != rank) {
      complain("%s: %s is [%lld, %lld, %lld] (%d dimensions), not [heads, tokens, rank] = [%d, %lld, %lld]", name,
             rib == &rib_q ? "rib_q" : "rib_k", dimension(*rib, 0), dimension(*rib, 1), dimension(*rib, 2),
             rib->rank, heads, tokens, rank);
      return false;
    }
  }
  return true;
}

int32_t CyclicWindowAttention::run(const Tensor *in, const void *const *inputs, void *const *results,
                                   void *, void *stream) const noexcept {
  const Tensor &gate = in[3];
  const int32_t channels = size(gate, 1);
  RibsrAttentionParams params{};
  params.struct_size = sizeof(params);
  params.dtype = gate.dtype;
  params.path = RIBSR_PATH_AUTO;
  params.batch = size(gate, 0);
  params.height = size(gate, 2);
  params.width = size(gate, 3);
  params.heads = heads;
  params.head_width = channels / heads;
  params.rank = size(in[1], 2);
  params.window_height = window[0];
  params.window_width = window[1];
  params.shift_y = shift[0];
  params.shift_x = shift[1];
  params.scale = scale;
  params.gate_sigmoid = gate_sigmoid;
  params.qkv = map_of(gate, 3ll * channels, inputs[0]);
  params.rib_q = inputs[1];
  params.rib_k = inputs[2];
  params.gate = map_of(gate, channels, inputs[3]);
  params.out = map_of(gate, channels, results[0]);
  return ribsr_attention(&params, stream);
}

// Those with a layer norm

std::array<Attribute, 1> Normalising::attributes() const noexcept {
  return {{{"epsilon", &epsilon, Kind::kFloat32, 1}}};
}

bool Normalising::valid_as(const char *name) const noexcept {
  if (epsilon >= 0.0f && std::isfinite(epsilon)) return true;
  complain("%s: attribute epsilon is %g: it must not be negative", name, static_cast<double>(epsilon));
  return false;
}

// ChannelLayerNorm

bool ChannelLayerNorm::fits(const Tensor *in) const noexcept {
  const long long channels = dimension(in[0], 1);
  if (has_dimensions(in[0], 4) && is_vector(in[1], channels) && is_vector(in[2], channels)) return true;
  complain("%s: weight (%lld values) and bias (%lld) do not belong to x with %lld channels in %d dimensions", name,
         dimension(in[1], 0), dimension(in[2], 0), channels, in[0].rank);
  return false;
}

int32_t ChannelLayerNorm::run(const Tensor *in, const void *const *inputs, void *const *results,
                              void *, void *stream) const noexcept {
  const Tensor &x = in[0];
  auto params = params_of<RibsrLayerNormParams>(x);
  params.epsilon = epsilon;
  params.in = map_of(x, params.channels, inputs[0]);
  params.out = map_of(x, params.channels, results[0]);
  params.weight = inputs[1];
  params.bias = inputs[2];
  return ribsr_layer_norm(&params, stream);
}

// DepthwiseConv3x3

std::array<Attribute, 2> DepthwiseConv3x3::attributes() const noexcept {
  return {{{"add_gelu", &add_gelu, Kind::kInt32, 1}, {"input_gelu", &input_gelu, Kind::kInt32, 1}}};
}

bool DepthwiseConv3x3::valid() const noexcept {
  for (const Attribute &flag : attributes()) {
    const int32_t value = *static_cast<const int32_t *>(flag.values);
    if (value == 0 || value == 1) continue;
    complain("%s: attribute %s is %d: it must be 0 or 1", name, flag.name, value);
    return false;
  }
  return true;
}

bool DepthwiseConv3x3::fits(const Tensor *in) const noexcept {
  const long long channels = dimension(in[0], 1);
  if (has_dimensions(in[0], 4) && is_weight(in[1], channels, 1, 3) && is_vector(in[2], channels)) return true;
  complain("%s: weight (%lld kernels) and bias (%lld values) are not [C, 1, 3, 3] and [C] for x with %lld channels in %d "
         "dimensions", name, dimension(in[1], 0), dimension(in[2], 0), channels, in[0].rank);
  return false;
}

int32_t DepthwiseConv3x3::run(const Tensor *in, const void *const *inputs, void *const *results,
                              void *, void *stream) const noexcept {
  const Tensor &x = in[0];
  auto params = params_of<RibsrDepthwiseParams>(x);
  params.input_gelu = input_gelu;
  params.epilogue = add_gelu != 0 ? RIBSR_EPILOGUE_ADD_GELU : RIBSR_EPILOGUE_NONE;
  params.in = map_of(x, params.channels, inputs[0]);
  params.out = map_of(x, params.channels, results[0]);
  params.weight = inputs[1];
  params.bias = inputs[2];
  return ribsr_depthwise(&params, stream);
}

// FeedForward

bool FeedForward::fits(const Tensor *in) const noexcept {
  const long long channels = dimension(in[0], 1), hidden = dimension(in[4], 0);
  if (has_dimensions(in[0], 4) && is_vector(in[1], channels) && is_vector(in[2], channels) &&
      is_weight(in[3], hidden, channels, 1) && is_vector(in[4], hidden) && is_weight(in[5], hidden, 1, 3) &&
      is_vector(in[6], hidden) && is_weight(in[7], channels, hidden, 1) && is_vector(in[8], channels)) {
    return true;
  }
  complain("%s: the weights are not those of x with %lld channels in %d dimensions and %lld hidden channels", name,
         channels, in[0].rank, hidden);
  return false;
}

size_t FeedForward::workspace(const Tensor *in) const noexcept {
  return static_cast<size_t>(ribsr_feed_forward_workspace(size(in[0], 1), size(in[4], 0)));
}

int32_t FeedForward::run(const Tensor *in, const void *const *inputs, void *const *results,
                         void *workspace, void *stream) const noexcept {
  const Tensor &x = in[0];
  auto params = params_of<RibsrFeedForwardParams>(x);
  params.hidden = size(in[4], 0);
  params.epsilon = epsilon;
  params.in = map_of(x, params.channels, inputs[0]);
  params.out = map_of(x, params.channels, results[0]);
  params.norm_weight = inputs[1];
  params.norm_bias = inputs[2];
  params.expand_weight = inputs[3];
  params.expand_bias = inputs[4];
  params.depthwise_weight = inputs[5];
  params.depthwise_bias = inputs[6];
  params.contract_weight = inputs[7];
  params.contract_bias = inputs[8];
  params.workspace = workspace;
  return ribsr_feed_forward(&params, stream);
}

// AttentionInputs

bool AttentionInputs::fits(const Tensor *in) const noexcept {
  const long long channels = dimension(in[0], 1);
  if (has_dimensions(in[0], 4) && is_vector(in[1], channels) && is_vector(in[2], channels) &&
      is_weight(in[3], 3 * channels, channels, 1) && is_vector(in[4], 3 * channels) &&
      is_weight(in[5], channels, 1, 3) && is_vector(in[6], channels) && is_weight(in[7], channels, channels, 1) &&
      is_vector(in[8], channels)) {
    return true;
  }
  complain("%s: the weights are not those of x with %lld channels in %d dimensions", name, channels, in[0].rank);
  return false;
}

size_t AttentionInputs::workspace(const Tensor *in) const noexcept {
  return static_cast<size_t>(ribsr_attention_inputs_workspace(size(in[0], 1)));
}

int32_t AttentionInputs::run(const Tensor *in, const void *const *inputs, void *const *results,
                             void *workspace, void *stream) const noexcept {
  const Tensor &x = in[0];
  auto params = params_of<RibsrAttentionInputsParams>(x);
  params.epsilon = epsilon;
  params.in = map_of(x, params.channels, inputs[0]);
  params.qkv = map_of(x, 3ll * params.channels, results[0]);
  params.gate = map_of(x, params.channels, results[1]);
  params.norm_weight = inputs[1];
  params.norm_bias = inputs[2];
  params.project_weight = inputs[3];
  params.project_bias = inputs[4];
  params.depthwise_weight = inputs[5];
  params.depthwise_bias = inputs[6];
  params.mix_weight = inputs[7];
  params.mix_bias = inputs[8];
  params.workspace = workspace;
  return ribsr_attention_inputs(&params, stream);
}

// Convolution

std::array<Attribute, 1> Convolution::attributes() const noexcept {
  return {{{"negative_slope", &negative_slope, Kind::kFloat32, 1}}};
}

bool Convolution::valid() const noexcept {
  if (std::isfinite(negative_slope)) return true;
  complain("%s: attribute negative_slope is %g", name, static_cast<double>(negative_slope));
  return false;
}

bool Convolution::fits(const Tensor *in) const noexcept {
  const Tensor &x = in[0], &residual = in[1], &weight = in[2];
  const long long outputs = dimension(weight, 0), side = dimension(weight, 1);
  const bool weights = has_dimensions(weight, 4) && dimension(weight, 2) == side &&
                       dimension(weight, 3) == dimension(x, 1) && is_vector(in[3], outputs);
  bool added = residual.rank == 0;  // it may be missing
  if (!added) {
    added = has_dimensions(residual, 4) && dimension(residual, 1) == outputs;
    for (const int32_t index : {0, 2, 3}) added = added && dimension(residual, index) == dimension(x, index);
  }
  if (has_dimensions(x, 4) && weights && added) return true;
  complain("%s: weight (%lld outputs, %lld sides), bias (%lld values) and residual (%lld channels) are not those of x "
           "with %lld channels in %d dimensions", name, outputs, side, dimension(in[3], 0), dimension(residual, 1),
           dimension(x, 1), x.rank);
  return false;
}

int32_t Convolution::run(const Tensor *in, const void *const *inputs, void *const *results, void *,
                         void *stream) const noexcept {
  const Tensor &x = in[0];
  auto params = params_of<RibsrConvolutionParams>(x);
  params.outputs = size(in[2], 0);
  params.kernel = size(in[2], 1);
  params.negative_slope = negative_slope;
  params.in = map_of(x, params.channels, inputs[0]);
  if (in[1].rank != 0) params.residual = map_of(x, params.outputs, inputs[1]);
  params.out = map_of(x, params.outputs, results[0]);
  params.weight = inputs[2];
  params.bias = inputs[3];
  return ribsr_convolution(&params, stream);
}

}  // namespace ribsr::runtimes
