#include "runtimes/tensorrt/operators.h"

#include <dlfcn.h>

#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "ribsr_kernels.h"

namespace ribsr::tensorrt {

using nvinfer1::DataType;
using nvinfer1::TensorFormat;

static std::atomic<nvinfer1::ILoggerFinder *> logger_finder{nullptr};

void set_logger_finder(nvinfer1::ILoggerFinder *finder) noexcept { logger_finder = finder; }

#define RIBSR_TEXT_(value) #value
#define RIBSR_TEXT(value) RIBSR_TEXT_(value)

// The finder knows the logger of the engine that calls. Outside engines, as when a network is parsed, there is the one
// of the process, asked for without linking with TensorRT.
static nvinfer1::ILogger *find_logger() noexcept {
  nvinfer1::ILogger *logger = nullptr;
  try {
    if (nvinfer1::ILoggerFinder *finder = logger_finder) logger = finder->findLogger();
  } catch (...) {  // TensorRT's own code, not declared noexcept
  }
  if (logger != nullptr) return logger;
  void *library = dlopen("libnvinfer.so." RIBSR_TEXT(NV_TENSORRT_MAJOR), RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  const auto get_logger = reinterpret_cast<decltype(&getLogger)>(dlsym(library, "getLogger"));
  dlclose(library);
  return get_logger != nullptr ? get_logger() : nullptr;
}

void report(const char *format, ...) noexcept {
  char line[768] = "ribsr: ";
  const size_t prefix = strlen(line);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line + prefix, sizeof(line) - prefix, format, arguments);
  va_end(arguments);
  if (nvinfer1::ILogger *logger = find_logger()) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, line);
  } else {
    fprintf(stderr, "%s\n", line);
  }
}

int32_t checked(const char *name, int32_t status) noexcept {
  if (status != RIBSR_OK) report("%s: %s", name, ribsr_error_message());
  return status;
}

// Attributes

static_assert(sizeof(int32_t) == 4 && sizeof(float) == 4, "every attribute's values are 4 bytes each");

static bool read_field(const char *name, const PluginField &given, const PluginField &wanted) noexcept {
  auto *values = static_cast<int32_t *>(const_cast<void *>(wanted.data));
  if (given.data != nullptr && given.length == wanted.length) {
    if (given.type == wanted.type) {
      memcpy(values, given.data, static_cast<size_t>(wanted.length) * 4);
      return true;
    }
#if NV_TENSORRT_MAJOR >= 10
    // The parsers to 10.1 pass ONNX integers as int32, but they are int64 in the file and in Python.
    if (given.type == PluginFieldType::kINT64 && wanted.type == PluginFieldType::kINT32) {
      for (int32_t index = 0; index < wanted.length; ++index) {
        int64_t value;
        memcpy(&value, static_cast<const char *>(given.data) + index * sizeof(value), sizeof(value));
        if (value != static_cast<int32_t>(value)) {
          report("%s: attribute %s is %lld, more than 32 bits", name, wanted.name, static_cast<long long>(value));
          return false;
        }
        values[index] = static_cast<int32_t>(value);
      }
      return true;
    }
#endif
  }
  report("%s: attribute %s must be %d %s, but is %d values of plugin field type %d", name, wanted.name, wanted.length,
         wanted.type == PluginFieldType::kINT32 ? "int32" : "float32", given.length, static_cast<int>(given.type));
  return false;
}

bool read_fields(const char *name, const PluginFieldCollection *given, const PluginField *wanted,
                 size_t count) noexcept {
  const int32_t fields = given != nullptr && given->fields != nullptr ? given->nbFields : 0;
  for (size_t index = 0; index < count; ++index) {
    const PluginField *found = nullptr;
    for (int32_t field = 0; field < fields && found == nullptr; ++field) {
      const PluginField &candidate = given->fields[field];
      if (candidate.name != nullptr && strcmp(candidate.name, wanted[index].name) == 0) found = &candidate;
    }
    if (found == nullptr) {
      report("%s: attribute %s is missing", name, wanted[index].name);
      return false;
    }
    if (!read_field(name, *found, wanted[index])) return false;
  }
  return true;
}

// Shapes and formats

bool supports(bool is_map, bool linear, const PluginTensorDesc &first, const PluginTensorDesc &tensor) noexcept {
#if NV_TENSORRT_MAJOR >= 10
  const bool half = first.type == DataType::kHALF || first.type == DataType::kBF16;
#else
  const bool half = first.type == DataType::kHALF;
#endif
  const bool layout = first.format == TensorFormat::kHWC8 || (linear && first.format == TensorFormat::kLINEAR);
  return half && layout && tensor.type == first.type &&
         tensor.format == (is_map ? first.format : TensorFormat::kLINEAR);
}

bool output_shape(const char *name, int32_t count, int32_t wanted, int32_t like, Dimension channels,
                  const DimsExprs *inputs, DimsExprs *output) noexcept {
  if (count != wanted) {
    report("%s: has %d inputs instead of %d", name, count, wanted);
    return false;
  }
  for (const int32_t index : {like, channels.input}) {
    if (inputs[index].nbDims == 4) continue;
    report("%s: input %d has %d dimensions instead of 4", name, index, inputs[index].nbDims);
    return false;
  }
  *output = inputs[like];
  output->d[1] = inputs[channels.input].d[channels.axis];
  return true;
}

static long long dimension(const PluginTensorDesc &tensor, int32_t index) noexcept { return tensor.dims.d[index]; }

static bool has_dimensions(const PluginTensorDesc &tensor, int32_t count) noexcept {
  return tensor.dims.nbDims == count;
}

static bool is_vector(const PluginTensorDesc &tensor, long long length) noexcept {
  return has_dimensions(tensor, 1) && dimension(tensor, 0) == length;
}

static bool is_weight(const PluginTensorDesc &tensor, long long outputs, long long inputs, long long side) noexcept {
  return has_dimensions(tensor, 4) && dimension(tensor, 0) == outputs && dimension(tensor, 1) == inputs &&
         dimension(tensor, 2) == side && dimension(tensor, 3) == side;
}

static int32_t size(const PluginTensorDesc &tensor, int32_t index) noexcept {
  return static_cast<int32_t>(tensor.dims.d[index]);
}

static int32_t dtype(const PluginTensorDesc &tensor) noexcept {
  return tensor.type == DataType::kHALF ? RIBSR_FLOAT16 : RIBSR_BFLOAT16;
}

// A map of `channels` channels with the batch, height, width and format of `like`.
static RibsrMap map_of(const PluginTensorDesc &like, int64_t channels, const void *data) noexcept {
  const int64_t height = like.dims.d[2], width = like.dims.d[3];
  RibsrMap map{};
  map.data = const_cast<void *>(data);
  if (like.format == TensorFormat::kHWC8) {
    const int64_t pixel = (channels + 7) / 8 * 8;
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
static Params params_of(const PluginTensorDesc &x) noexcept {
  Params params{};
  params.struct_size = sizeof(params);
  params.dtype = dtype(x);
  params.batch = size(x, 0);
  params.channels = size(x, 1);
  params.height = size(x, 2);
  params.width = size(x, 3);
  return params;
}

// CyclicWindowAttention

std::array<PluginField, 5> CyclicWindowAttention::fields() const noexcept {
  return {PluginField{"window", window, PluginFieldType::kINT32, 2}, {"heads", &heads, PluginFieldType::kINT32, 1},
          {"shift", shift, PluginFieldType::kINT32, 2}, {"scale", &scale, PluginFieldType::kFLOAT32, 1},
          {"gate_sigmoid", &gate_sigmoid, PluginFieldType::kINT32, 1}};
}

bool CyclicWindowAttention::valid() const noexcept {
  for (const int32_t side : window) {
    if (side < 2 || side > 128) {
      report("%s: attribute window is %d, %d: each side must be 2 to 128", name, window[0], window[1]);
      return false;
    }
  }
  if (heads < 1) {
    report("%s: attribute heads is %d: it must be positive", name, heads);
    return false;
  }
  if (!(scale > 0.0f && std::isfinite(scale))) {
    report("%s: attribute scale is %g: it must be positive", name, static_cast<double>(scale));
    return false;
  }
  if (gate_sigmoid != 0 && gate_sigmoid != 1) {
    report("%s: attribute gate_sigmoid is %d: it must be 0 or 1", name, gate_sigmoid);
    return false;
  }
  return true;
}

bool CyclicWindowAttention::fits(const PluginTensorDesc *in) const noexcept {
  const PluginTensorDesc &qkv = in[0], &rib_q = in[1], &rib_k = in[2], &gate = in[3];
  if (!has_dimensions(qkv, 4) || !has_dimensions(gate, 4) || dimension(qkv, 1) != 3 * dimension(gate, 1)) {
    report("%s: qkv (%d dimensions, %lld channels) is not 4-D with three times the channels of gate (%d, %lld)", name,
           qkv.dims.nbDims, dimension(qkv, 1), gate.dims.nbDims, dimension(gate, 1));
    return false;
  }
  for (const int32_t index : {0, 2, 3}) {
    if (dimension(qkv, index) != dimension(gate, index)) {
      report("%s: dimension %d is %lld in qkv and %lld in gate", name, index, dimension(qkv, index),
             dimension(gate, index));
      return false;
    }
  }
  if (dimension(gate, 1) % heads != 0) {
    report("%s: gate's %lld channels are no multiple of %d heads", name, dimension(gate, 1), heads);
    return false;
  }
  for (const PluginTensorDesc *rib : {&rib_q, &rib_k}) {
    const long long tokens = 1ll * window[0] * window[1], rank = dimension(rib_q, 2);
    if (!has_dimensions(*rib, 3) || dimension(*rib, 0) != heads || dimension(*rib, 1) != tokens ||
        dimension(*rib, 2) != rank) {
      report("%s: %s is [%lld, %lld, %lld] (%d dimensions), not [heads, tokens, rank] = [%d, %lld, %lld]", name,
             rib == &rib_q ? "rib_q" : "rib_k", dimension(*rib, 0), dimension(*rib, 1), dimension(*rib, 2),
             rib->dims.nbDims, heads, tokens, rank);
      return false;
    }
  }
  return true;
}

int32_t CyclicWindowAttention::run(const PluginTensorDesc *in, const void *const *inputs, void *const *results,
                                   void *, cudaStream_t stream) const noexcept {
  const PluginTensorDesc &gate = in[3];
  const int32_t channels = size(gate, 1);
  RibsrAttentionParams params{};
  params.struct_size = sizeof(params);
  params.dtype = dtype(gate);
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

std::array<PluginField, 1> Normalising::fields() const noexcept {
  return {PluginField{"epsilon", &epsilon, PluginFieldType::kFLOAT32, 1}};
}

bool Normalising::valid_as(const char *name) const noexcept {
  if (epsilon >= 0.0f && std::isfinite(epsilon)) return true;
  report("%s: attribute epsilon is %g: it must not be negative", name, static_cast<double>(epsilon));
  return false;
}

// ChannelLayerNorm

bool ChannelLayerNorm::fits(const PluginTensorDesc *in) const noexcept {
  const long long channels = dimension(in[0], 1);
  if (has_dimensions(in[0], 4) && is_vector(in[1], channels) && is_vector(in[2], channels)) return true;
  report("%s: weight (%lld values) and bias (%lld) do not belong to x with %lld channels in %d dimensions", name,
         dimension(in[1], 0), dimension(in[2], 0), channels, in[0].dims.nbDims);
  return false;
}

int32_t ChannelLayerNorm::run(const PluginTensorDesc *in, const void *const *inputs, void *const *results,
                              void *, cudaStream_t stream) const noexcept {
  const PluginTensorDesc &x = in[0];
  auto params = params_of<RibsrLayerNormParams>(x);
  params.epsilon = epsilon;
  params.in = map_of(x, params.channels, inputs[0]);
  params.out = map_of(x, params.channels, results[0]);
  params.weight = inputs[1];
  params.bias = inputs[2];
  return ribsr_layer_norm(&params, stream);
}

// DepthwiseConv3x3

std::array<PluginField, 2> DepthwiseConv3x3::fields() const noexcept {
  return {PluginField{"add_gelu", &add_gelu, PluginFieldType::kINT32, 1},
          PluginField{"input_gelu", &input_gelu, PluginFieldType::kINT32, 1}};
}

bool DepthwiseConv3x3::valid() const noexcept {
  for (const PluginField &flag : fields()) {
    const int32_t value = *static_cast<const int32_t *>(flag.data);
    if (value == 0 || value == 1) continue;
    report("%s: attribute %s is %d: it must be 0 or 1", name, flag.name, value);
    return false;
  }
  return true;
}

bool DepthwiseConv3x3::fits(const PluginTensorDesc *in) const noexcept {
  const long long channels = dimension(in[0], 1);
  if (has_dimensions(in[0], 4) && is_weight(in[1], channels, 1, 3) && is_vector(in[2], channels)) return true;
  report("%s: weight (%lld kernels) and bias (%lld values) are not [C, 1, 3, 3] and [C] for x with %lld channels in %d "
         "dimensions", name, dimension(in[1], 0), dimension(in[2], 0), channels, in[0].dims.nbDims);
  return false;
}

int32_t DepthwiseConv3x3::run(const PluginTensorDesc *in, const void *const *inputs, void *const *results,
                              void *, cudaStream_t stream) const noexcept {
  const PluginTensorDesc &x = in[0];
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

bool FeedForward::fits(const PluginTensorDesc *in) const noexcept {
  const long long channels = dimension(in[0], 1), hidden = dimension(in[4], 0);
  if (has_dimensions(in[0], 4) && is_vector(in[1], channels) && is_vector(in[2], channels) &&
      is_weight(in[3], hidden, channels, 1) && is_vector(in[4], hidden) && is_weight(in[5], hidden, 1, 3) &&
      is_vector(in[6], hidden) && is_weight(in[7], channels, hidden, 1) && is_vector(in[8], channels)) {
    return true;
  }
  report("%s: the weights are not those of x with %lld channels in %d dimensions and %lld hidden channels", name,
         channels, in[0].dims.nbDims, hidden);
  return false;
}

size_t FeedForward::workspace(const PluginTensorDesc *in) const noexcept {
  return static_cast<size_t>(ribsr_feed_forward_workspace(size(in[0], 1), size(in[4], 0)));
}

int32_t FeedForward::run(const PluginTensorDesc *in, const void *const *inputs, void *const *results,
                         void *workspace, cudaStream_t stream) const noexcept {
  const PluginTensorDesc &x = in[0];
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

bool AttentionInputs::fits(const PluginTensorDesc *in) const noexcept {
  const long long channels = dimension(in[0], 1);
  if (has_dimensions(in[0], 4) && is_vector(in[1], channels) && is_vector(in[2], channels) &&
      is_weight(in[3], 3 * channels, channels, 1) && is_vector(in[4], 3 * channels) &&
      is_weight(in[5], channels, 1, 3) && is_vector(in[6], channels) && is_weight(in[7], channels, channels, 1) &&
      is_vector(in[8], channels)) {
    return true;
  }
  report("%s: the weights are not those of x with %lld channels in %d dimensions", name, channels, in[0].dims.nbDims);
  return false;
}

size_t AttentionInputs::workspace(const PluginTensorDesc *in) const noexcept {
  return static_cast<size_t>(ribsr_attention_inputs_workspace(size(in[0], 1)));
}

int32_t AttentionInputs::run(const PluginTensorDesc *in, const void *const *inputs, void *const *results,
                             void *workspace, cudaStream_t stream) const noexcept {
  const PluginTensorDesc &x = in[0];
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

}  // namespace ribsr::tensorrt
