// Plays TensorRT's part for the IPluginV3 plugins, over the real headers of TensorRT 10 or 11, without its libraries:
//   nvcc -std=c++17 -O2 -I TENSORRT_INCLUDE v3_driver.cpp -o v3_driver
//   v3_driver libribsr_tensorrt11.so [--host-only]
// Each case goes the way of a build and of a run: creator, plugin, clone, types, shapes, formats, configuration,
// context, shape change, enqueue, fields to serialise, a second plugin from those fields, same output. --host-only
// leaves out what needs a GPU. Prints a line per case; exits with 1 if any failed.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // TensorRT's headers use what they deprecate
#include <NvInferRuntime.h>
#pragma GCC diagnostic pop
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using namespace nvinfer1;

namespace {

std::atomic<int> failures{0};

void expect(bool condition, const std::string &what) {
  if (condition) return;
  ++failures;
  printf("  FAILED: %s\n", what.c_str());
}

void cuda(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return;
  printf("  FAILED: %s: %s\n", what, cudaGetErrorString(error));
  exit(1);
}

// TensorRT's side: logger, expressions, context

struct Logger final : ILogger {
  std::vector<std::string> lines;
  void log(Severity severity, const char *text) noexcept override {
    expect(severity == Severity::kERROR, "only errors are logged");
    lines.emplace_back(text);
  }
} logger;

struct Finder final : ILoggerFinder {
  ILogger *findLogger() override { return &logger; }
} finder;

struct Expression final : IDimensionExpr {
  struct Value final : apiv::VDimensionExpr {
    bool isConstant() const override { return false; }
    int64_t getConstantValue() const override { return 0; }
    bool isSizeTensor() const override { return false; }
  } value;
  Expression() { mImpl = &value; }
};

struct Builder final : IExprBuilder {
  Builder() { mImpl = nullptr; }  // the output's dimensions are an input's: nothing to compute
};

struct Context final : IPluginResourceContext {
  IGpuAllocator *getGpuAllocator() const noexcept override { return nullptr; }
  IErrorRecorder *getErrorRecorder() const noexcept override { return nullptr; }
};

// Nodes

struct Field {
  std::string name;
  PluginFieldType type;
  int32_t length;
  std::vector<char> bytes;
};

template <class Value>
Field field(const char *name, PluginFieldType type, const std::vector<Value> &values) {
  const auto *bytes = reinterpret_cast<const char *>(values.data());
  return {name, type, static_cast<int32_t>(values.size()), {bytes, bytes + values.size() * sizeof(Value)}};
}
Field ints(const char *name, const std::vector<int32_t> &values) {
  return field(name, PluginFieldType::kINT32, values);
}
Field longs(const char *name, const std::vector<int64_t> &values) {
  return field(name, PluginFieldType::kINT64, values);
}
Field real(const char *name, float value) {
  return field(name, PluginFieldType::kFLOAT32, std::vector<float>{value});
}

// A collection as TensorRT hands it over; valid while `fields` is.
struct Collection {
  std::vector<PluginField> pointers;
  PluginFieldCollection collection;
  explicit Collection(const std::vector<Field> &fields) {
    for (const Field &one : fields) pointers.emplace_back(one.name.c_str(), one.bytes.data(), one.type, one.length);
    collection = {static_cast<int32_t>(pointers.size()), pointers.data()};
  }
};

using Arrays = std::vector<std::vector<double>>;

struct Node {
  std::string label, name;
  std::vector<Field> fields;
  std::vector<std::vector<int64_t>> shapes;  // of the inputs
  std::vector<bool> maps;
  size_t like;
  std::function<Arrays(const Arrays &)> reference;
  bool linear = true;  // whether the maps may be kLINEAR, not kHWC8 only
  struct Dimension {
    size_t input, axis;
  };
  std::vector<Dimension> outputs{};  // which dimensions their channels are; none stands for one output just like `like`
  bool hopper = false;               // whether it runs on compute capability 9.0 alone

  std::vector<std::vector<int64_t>> results() const {
    std::vector<std::vector<int64_t>> all(std::max<size_t>(outputs.size(), 1), shapes[like]);
    for (size_t index = 0; index < outputs.size(); ++index) {
      all[index][1] = shapes[outputs[index].input][outputs[index].axis];
    }
    return all;
  }
};

int64_t volume(const std::vector<int64_t> &shape) {
  int64_t product = 1;
  for (const int64_t side : shape) product *= side;
  return product;
}

// Straightforward references in double precision, maps in NCHW order.

std::vector<int64_t> sources(int64_t size, int64_t window, int64_t shift) {
  std::vector<int64_t> pixels((size + window - 1) / window * window);
  const int64_t padded = static_cast<int64_t>(pixels.size()), last = size - 1;
  for (int64_t index = 0; index < padded; ++index) {
    const int64_t at = ((index + shift) % padded + padded) % padded;
    pixels[index] = last - std::llabs(last - at % std::max<int64_t>(2 * last, 1));
  }
  return pixels;
}

std::vector<double> attention(const Arrays &in, const std::vector<std::vector<int64_t>> &shapes, int64_t window_height,
                              int64_t window_width, int64_t shift_y, int64_t shift_x, double scale,
                              bool gate_sigmoid) {
  const std::vector<int64_t> &gate = shapes[3];
  const int64_t channels = gate[1], height = gate[2], width = gate[3];
  const int64_t heads = shapes[1][0], tokens = shapes[1][1], rank = shapes[1][2], depth = channels / heads;
  const std::vector<int64_t> rows = sources(height, window_height, shift_y);
  const std::vector<int64_t> columns = sources(width, window_width, shift_x);
  const int64_t padded_height = rows.size(), padded_width = columns.size();
  std::vector<double> out(volume(gate)), q(tokens * depth), k(tokens * depth), v(tokens * depth), weights(tokens);
  for (int64_t batch = 0; batch < gate[0]; ++batch)
    for (int64_t top = 0; top < padded_height; top += window_height)
      for (int64_t left = 0; left < padded_width; left += window_width)
        for (int64_t head = 0; head < heads; ++head) {
          const auto row = [&](int64_t token) { return top + token / window_width; };
          const auto column = [&](int64_t token) { return left + token % window_width; };
          for (int64_t token = 0; token < tokens; ++token)
            for (int64_t d = 0; d < depth; ++d) {
              const auto at = [&](int64_t part) {
                const int64_t channel = part * channels + head * depth + d;
                return in[0][((batch * 3 * channels + channel) * height + rows[row(token)]) * width +
                             columns[column(token)]];
              };
              q[token * depth + d] = at(0), k[token * depth + d] = at(1), v[token * depth + d] = at(2);
            }
          for (int64_t query = 0; query < tokens; ++query) {
            // Rolled back; what lies outside the map is cropped.
            const int64_t y = ((row(query) + shift_y) % padded_height + padded_height) % padded_height;
            const int64_t x = ((column(query) + shift_x) % padded_width + padded_width) % padded_width;
            if (y >= height || x >= width) continue;
            double total = 0;
            for (int64_t key = 0; key < tokens; ++key) {
              double score = 0;
              for (int64_t d = 0; d < depth; ++d) score += q[query * depth + d] * k[key * depth + d];
              for (int64_t r = 0; r < rank; ++r) {
                score += in[1][(head * tokens + query) * rank + r] * in[2][(head * tokens + key) * rank + r];
              }
              total += weights[key] = std::exp(scale * score);
            }
            for (int64_t d = 0; d < depth; ++d) {
              double sum = 0;
              for (int64_t key = 0; key < tokens; ++key) sum += weights[key] * v[key * depth + d];
              const int64_t pixel = ((batch * channels + head * depth + d) * height + y) * width + x;
              const double factor = gate_sigmoid ? 1 / (1 + std::exp(-in[3][pixel])) : in[3][pixel];
              out[pixel] = factor * sum / total;
            }
          }
        }
  return out;
}

std::vector<double> layer_norm(const Arrays &in, const std::vector<int64_t> &shape, double epsilon) {
  const int64_t channels = shape[1], pixels = shape[2] * shape[3];
  std::vector<double> out(in[0].size());
  for (int64_t batch = 0; batch < shape[0]; ++batch)
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const auto at = [&](int64_t channel) { return (batch * channels + channel) * pixels + pixel; };
      double mean = 0, variance = 0;
      for (int64_t c = 0; c < channels; ++c) mean += in[0][at(c)] / channels;
      for (int64_t c = 0; c < channels; ++c) variance += std::pow(in[0][at(c)] - mean, 2) / channels;
      for (int64_t c = 0; c < channels; ++c) {
        out[at(c)] = (in[0][at(c)] - mean) / std::sqrt(variance + epsilon) * in[1][c] + in[2][c];
      }
    }
  return out;
}

double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }

std::vector<double> depthwise(const Arrays &in, const std::vector<int64_t> &shape, bool add_gelu, bool input_gelu) {
  const auto input = [&](int64_t at) { return input_gelu ? gelu(in[0][at]) : in[0][at]; };
  const int64_t height = shape[2], width = shape[3];
  std::vector<double> out(in[0].size());
  for (int64_t plane = 0; plane < shape[0] * shape[1]; ++plane)
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x) {
        const int64_t channel = plane % shape[1], at = (plane * height + y) * width + x;
        double sum = in[2][channel];
        for (int64_t tap = 0; tap < 9; ++tap) {
          const int64_t row = y + tap / 3 - 1, column = x + tap % 3 - 1;
          if (row < 0 || row >= height || column < 0 || column >= width) continue;
          sum += input((plane * height + row) * width + column) * in[1][channel * 9 + tap];
        }
        out[at] = add_gelu ? input(at) + gelu(sum) : sum;
      }
  return out;
}

std::vector<double> pointwise(const std::vector<double> &in, const std::vector<int64_t> &shape,
                              const std::vector<double> &weight, const std::vector<double> &bias) {
  const int64_t pixels = shape[2] * shape[3], inputs = shape[1], outputs = static_cast<int64_t>(bias.size());
  std::vector<double> out(shape[0] * outputs * pixels);
  for (int64_t batch = 0; batch < shape[0]; ++batch)
    for (int64_t channel = 0; channel < outputs; ++channel)
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        double sum = bias[channel];
        for (int64_t c = 0; c < inputs; ++c) {
          sum += in[(batch * inputs + c) * pixels + pixel] * weight[channel * inputs + c];
        }
        out[(batch * outputs + channel) * pixels + pixel] = sum;
      }
  return out;
}

std::vector<double> feed_forward(const Arrays &in, const std::vector<int64_t> &shape, double epsilon) {
  std::vector<int64_t> inner = shape;
  inner[1] = static_cast<int64_t>(in[4].size());
  const std::vector<double> hidden = pointwise(layer_norm(in, shape, epsilon), shape, in[3], in[4]);
  const std::vector<double> convolved = depthwise({hidden, in[5], in[6]}, inner, true, true);
  std::vector<double> out = pointwise(convolved, inner, in[7], in[8]);
  for (size_t index = 0; index < out.size(); ++index) out[index] += in[0][index];
  return out;
}

Arrays attention_inputs(const Arrays &in, const std::vector<int64_t> &shape, double epsilon) {
  const std::vector<double> normal = layer_norm(in, shape, epsilon);
  return {pointwise(normal, shape, in[3], in[4]),
          pointwise(depthwise({normal, in[5], in[6]}, shape, false, false), shape, in[7], in[8])};
}

std::vector<Node> nodes() {
  std::vector<Node> all;
  const auto add_attention = [&](const char *label, int32_t heads, int32_t depth, int32_t rank, int32_t window_height,
                                 int32_t window_width, int32_t shift_y, int32_t shift_x, bool int64,
                                 int32_t gate_sigmoid) {
    const int64_t channels = heads * depth, tokens = window_height * window_width;
    const float scale = 0.35f;
    const std::vector<std::vector<int64_t>> shapes{
        {2, 3 * channels, 37, 53}, {heads, tokens, rank}, {heads, tokens, rank}, {2, channels, 37, 53}};
    std::vector<Field> fields{ints("window", {window_height, window_width}), ints("heads", {heads}),
                              ints("shift", {shift_y, shift_x})};
    if (int64) {
      fields = {longs("window", {window_height, window_width}), longs("heads", {heads}),
                longs("shift", {shift_y, shift_x})};
    }
    fields.push_back(real("scale", scale));
    fields.push_back(int64 ? longs("gate_sigmoid", {gate_sigmoid}) : ints("gate_sigmoid", {gate_sigmoid}));
    all.push_back({label, "CyclicWindowAttention", fields, shapes, {true, false, false, true}, 3,
                   [=](const Arrays &in) {
                     return Arrays{attention(in, shapes, window_height, window_width, shift_y, shift_x, scale,
                                             gate_sigmoid == 1)};
                   }});
  };
  add_attention("attention, window 16, shift 3, 2 heads of 16", 2, 16, 16, 16, 16, 3, 3, false, 0);
  add_attention("attention, window 8x12, shift 0, 3 heads of 10, int64 attributes", 3, 10, 6, 8, 12, 0, 0, true, 1);
  add_attention("attention, window 48x64 larger than the map, shift 24x32, 1 head of 32", 1, 32, 24, 48, 64, 24, 32,
                false, 1);
  for (const int64_t channels : {37, 96}) {
    const std::vector<int64_t> shape{2, channels, 37, 53};
    all.push_back({"layer norm, " + std::to_string(channels) + " channels", "ChannelLayerNorm",
                   {real("epsilon", 1e-5f)}, {shape, {channels}, {channels}}, {true, false, false}, 0,
                   [=](const Arrays &in) { return Arrays{layer_norm(in, shape, 1e-5)}; }});
    for (const int32_t flags : {0, 1, 2, 3}) {
      const int32_t add_gelu = flags & 1, input_gelu = flags >> 1;
      all.push_back({"depthwise" + std::string(input_gelu ? " of GELU, " : ", ") + std::to_string(channels) +
                         " channels" + (add_gelu ? ", GELU and sum" : ""),
                     "DepthwiseConv3x3", {ints("add_gelu", {add_gelu}), ints("input_gelu", {input_gelu})},
                     {shape, {channels, 1, 3, 3}, {channels}}, {true, false, false}, 0,
                     [=](const Arrays &in) { return Arrays{depthwise(in, shape, add_gelu == 1, input_gelu == 1)}; }});
    }
  }
  for (const auto &[channels, hidden] : {std::pair<int64_t, int64_t>{48, 72}, {64, 80}, {192, 384}}) {
    const std::vector<int64_t> shape{2, channels, 37, 53};
    all.push_back({"feed-forward, " + std::to_string(channels) + " and " + std::to_string(hidden) + " channels",
                   "FeedForward", {real("epsilon", 1e-6f)},
                   {shape, {channels}, {channels}, {hidden, channels, 1, 1}, {hidden}, {hidden, 1, 3, 3}, {hidden},
                    {channels, hidden, 1, 1}, {channels}},
                   {true, false, false, false, false, false, false, false, false}, 0,
                   [=](const Arrays &in) { return Arrays{feed_forward(in, shape, 1e-6)}; }, false, {},
                   channels == 192});
  }
  for (const int64_t channels : {48, 64, 192}) {
    const std::vector<int64_t> shape{2, channels, 37, 53};
    all.push_back({"attention inputs, " + std::to_string(channels) + " channels", "AttentionInputs",
                   {real("epsilon", 1e-6f)},
                   {shape, {channels}, {channels}, {3 * channels, channels, 1, 1}, {3 * channels}, {channels, 1, 3, 3},
                    {channels}, {channels, channels, 1, 1}, {channels}},
                   {true, false, false, false, false, false, false, false, false}, 0,
                   [=](const Arrays &in) { return attention_inputs(in, shape, 1e-6); }, false, {{3, 0}, {7, 0}},
                   channels == 192});
  }
  return all;
}

// Tensors

uint16_t to_bits(double value, DataType type) {
  const float rounded = static_cast<float>(value);
  if (type == DataType::kHALF) return static_cast<__half_raw>(__float2half_rn(rounded)).x;
  return static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(rounded)).x;
}

double to_value(uint16_t bits, DataType type) {
  if (type == DataType::kHALF) return __half2float(__half(__half_raw{bits}));
  return __bfloat162float(__nv_bfloat16(__nv_bfloat16_raw{bits}));
}

PluginTensorDesc description(const std::vector<int64_t> &shape, DataType type, TensorFormat format) {
  PluginTensorDesc described{};
  described.dims.nbDims = static_cast<int32_t>(shape.size());
  for (size_t index = 0; index < shape.size(); ++index) described.dims.d[index] = shape[index];
  described.type = type;
  described.format = format;
  described.scale = -1.0f;
  return described;
}

// How many elements a tensor's memory has, and where its NCHW element `index` lies in it.
struct Layout {
  std::vector<int64_t> shape;
  TensorFormat format;
  int64_t pixel() const { return (shape[1] + 7) / 8 * 8; }
  int64_t size() const {
    return format == TensorFormat::kHWC8 ? shape[0] * shape[2] * shape[3] * pixel() : volume(shape);
  }
  int64_t at(int64_t index) const {
    if (format != TensorFormat::kHWC8) return index;
    const int64_t pixels = shape[2] * shape[3], plane = index / pixels;
    return (plane / shape[1] * pixels + index % pixels) * pixel() + plane % shape[1];
  }
};

constexpr int64_t kGuard = 256;  // elements after the outputs and the workspace
constexpr uint16_t kPoison = 0xffff;  // not a number in both types

uint16_t *upload(const std::vector<uint16_t> &values) {
  void *memory = nullptr;
  cuda(cudaMalloc(&memory, values.size() * 2), "cudaMalloc");
  cuda(cudaMemcpy(memory, values.data(), values.size() * 2, cudaMemcpyHostToDevice), "upload");
  return static_cast<uint16_t *>(memory);
}

struct Tensors {
  std::vector<PluginTensorDesc> in, out;
  std::vector<Layout> layouts;  // of the outputs
  std::vector<void *> inputs;
  size_t workspace = 0;  // bytes
};

using Results = std::vector<std::vector<uint16_t>>;

Results enqueue(IPluginV3 &plugin, const Tensors &tensors) {
  auto *runtime = static_cast<IPluginV3OneRuntime *>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  Results results;
  std::vector<void *> outputs;
  for (const Layout &layout : tensors.layouts) {
    results.emplace_back(layout.size() + kGuard, kPoison);
    outputs.push_back(upload(results.back()));
  }
  std::vector<uint16_t> scratch((tensors.workspace + 1) / 2 + kGuard, kPoison);
  void *workspace = upload(scratch);
  cudaStream_t stream;
  cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  expect(runtime->enqueue(tensors.in.data(), tensors.out.data(), tensors.inputs.data(), outputs.data(), workspace,
                          stream) == 0,
         "enqueue");
  cuda(cudaStreamSynchronize(stream), "enqueue");
  for (size_t index = 0; index < results.size(); ++index) {
    std::vector<uint16_t> &result = results[index];
    cuda(cudaMemcpy(result.data(), outputs[index], result.size() * 2, cudaMemcpyDeviceToHost), "download");
    cuda(cudaFree(outputs[index]), "cudaFree");
  }
  cuda(cudaStreamDestroy(stream), "stream");
  cuda(cudaMemcpy(scratch.data(), workspace, scratch.size() * 2, cudaMemcpyDeviceToHost), "download");
  cuda(cudaFree(workspace), "cudaFree");
  expect(std::all_of(scratch.end() - kGuard, scratch.end(), [](uint16_t bits) { return bits == kPoison; }),
         "nothing is written after the workspace");
  return results;
}

void compare(const std::vector<uint16_t> &result, const std::vector<double> &expected, const Layout &layout,
             DataType type) {
  double largest = 0, error = 0;
  for (size_t index = 0; index < expected.size(); ++index) {
    largest = std::max(largest, std::abs(expected[index]));
    const double difference = std::abs(to_value(result[layout.at(index)], type) - expected[index]);
    if (!(difference <= error)) error = std::isnan(difference) ? INFINITY : difference;
  }
  bool guard = true;
  for (int64_t index = 0; index < kGuard; ++index) guard = guard && result[layout.size() + index] == kPoison;
  printf("    error %.2e of the largest value\n", error / largest);
  expect(error <= (type == DataType::kHALF ? 4e-3 : 2e-2) * largest, "output equals the reference");
  expect(guard, "nothing is written after the output");
}

// The checks

using Plugin = std::unique_ptr<IPluginV3>;
std::vector<IPluginCreatorV3One *> creators;

IPluginCreatorV3One *creator_of(const std::string &name) {
  for (IPluginCreatorV3One *creator : creators) {
    if (name == creator->getPluginName()) return creator;
  }
  printf("FAILED: no creator of %s\n", name.c_str());
  exit(1);
}

Plugin create(const Node &node, const std::vector<Field> &fields, TensorRTPhase phase) {
  const Collection given(fields);
  return Plugin(creator_of(node.name)->createPlugin("node", &given.collection, phase));
}

// `call` must fail, and log one line with `text` in it.
void refused(const char *text, const std::function<bool()> &call) {
  logger.lines.clear();
  const bool failed = !call();
  const bool told = logger.lines.size() == 1 && logger.lines[0].rfind("ribsr: ", 0) == 0 &&
                    logger.lines[0].find(text) != std::string::npos && logger.lines[0].find('\n') == std::string::npos;
  expect(failed && told, std::string("refused, saying: ") + text +
                             (logger.lines.empty() ? " (said nothing)" : " (said: " + logger.lines[0] + ")"));
  logger.lines.clear();
}

void check_shapes(const Node &node, IPluginV3OneBuild &build) {
  Builder builder;
  std::vector<std::unique_ptr<Expression>> expressions;
  std::vector<DimsExprs> inputs(node.shapes.size());
  for (size_t index = 0; index < inputs.size(); ++index) {
    inputs[index].nbDims = static_cast<int32_t>(node.shapes[index].size());
    for (int32_t axis = 0; axis < inputs[index].nbDims; ++axis) {
      expressions.push_back(std::make_unique<Expression>());
      inputs[index].d[axis] = expressions.back().get();
    }
  }
  const int32_t count = static_cast<int32_t>(inputs.size()), wanted = static_cast<int32_t>(node.results().size());
  std::vector<DimsExprs> outputs(wanted);
  expect(build.getOutputShapes(inputs.data(), count, nullptr, 0, outputs.data(), wanted, builder) == 0,
         "getOutputShapes");
  for (size_t index = 0; index < outputs.size(); ++index) {
    DimsExprs like = inputs[node.like];
    if (index < node.outputs.size()) like.d[1] = inputs[node.outputs[index].input].d[node.outputs[index].axis];
    expect(outputs[index].nbDims == 4 && std::equal(like.d, like.d + 4, outputs[index].d),
           "an output's dimensions are the input's, its channels those of the weights");
  }
  refused("inputs instead of", [&] {
    return build.getOutputShapes(inputs.data(), count - 1, nullptr, 0, outputs.data(), wanted, builder) == 0;
  });
}

// Asks as TensorRT does: position by position, with later positions not valid yet. Every complete answer is collected.
void search_formats(IPluginV3OneBuild &build, int32_t inputs, std::vector<DynamicPluginTensorDesc> &tensors,
                    size_t position, std::vector<std::vector<DynamicPluginTensorDesc>> &found) {
  if (position == tensors.size()) return found.push_back(tensors);
  constexpr int32_t kTypes = 9, kFormats = 13;
  for (int32_t type = 0; type < kTypes; ++type)
    for (int32_t format = 0; format < kFormats; ++format) {
      tensors[position].desc.type = static_cast<DataType>(type);
      tensors[position].desc.format = static_cast<TensorFormat>(format);
      const int32_t outputs = static_cast<int32_t>(tensors.size()) - inputs;
      if (build.supportsFormatCombination(static_cast<int32_t>(position), tensors.data(), inputs, outputs)) {
        search_formats(build, inputs, tensors, position + 1, found);
      }
    }
  tensors[position].desc.type = static_cast<DataType>(99);
  tensors[position].desc.format = static_cast<TensorFormat>(99);
}

void check_formats(const Node &node, IPluginV3OneBuild &build) {
  std::vector<DynamicPluginTensorDesc> tensors(node.shapes.size() + node.results().size());
  for (DynamicPluginTensorDesc &tensor : tensors) {
    tensor.desc.type = static_cast<DataType>(99);
    tensor.desc.format = static_cast<TensorFormat>(99);
  }
  std::vector<std::vector<DynamicPluginTensorDesc>> found;
  search_formats(build, static_cast<int32_t>(node.shapes.size()), tensors, 0, found);
  const size_t wanted = node.linear ? 4 : 2;
  expect(found.size() == wanted, "two types in every format, not " + std::to_string(found.size()) + " combinations");
  for (const auto &combination : found) {
    const PluginTensorDesc &first = combination[0].desc;
    expect(first.type == DataType::kHALF || first.type == DataType::kBF16, "half precision only");
    expect(first.format == TensorFormat::kHWC8 || (node.linear && first.format == TensorFormat::kLINEAR),
           "kHWC8 or kLINEAR only");
    for (size_t index = 0; index < combination.size(); ++index) {
      const bool map = index >= node.maps.size() || node.maps[index];
      expect(combination[index].desc.type == first.type, "one type for all");
      expect(combination[index].desc.format == (map ? first.format : TensorFormat::kLINEAR),
             "maps alike, constants linear");
    }
  }
}

// The bytes of workspace that the plugin asks for as soon as it is configured.
size_t check_configuration(const Node &node, IPluginV3OneBuild &build, const Tensors &tensors) {
  std::vector<DynamicPluginTensorDesc> in;
  for (size_t index = 0; index < tensors.in.size(); ++index) {
    DynamicPluginTensorDesc dynamic{tensors.in[index], tensors.in[index].dims, tensors.in[index].dims,
                                    tensors.in[index].dims};
    if (node.maps[index]) dynamic.desc.dims.d[0] = dynamic.desc.dims.d[2] = dynamic.desc.dims.d[3] = -1;
    in.push_back(dynamic);
  }
  std::vector<DynamicPluginTensorDesc> out;
  for (const PluginTensorDesc &one : tensors.out) out.push_back({one, one.dims, one.dims, one.dims});
  const int32_t count = static_cast<int32_t>(in.size()), outputs = static_cast<int32_t>(out.size());
  expect(build.configurePlugin(in.data(), count, out.data(), outputs) == 0, "configurePlugin");
  const size_t workspace = build.getWorkspaceSize(in.data(), count, out.data(), outputs);
  in[1].desc.dims.d[0] += 1;
  refused(node.name.c_str(), [&] { return build.configurePlugin(in.data(), count, out.data(), outputs) == 0; });
  return workspace;
}

std::vector<Field> copied(const PluginFieldCollection *fields) {
  std::vector<Field> copies;
  for (int32_t index = 0; index < fields->nbFields; ++index) {
    const PluginField &one = fields->fields[index];
    const auto *bytes = static_cast<const char *>(one.data);
    copies.push_back({one.name, one.type, one.length, {bytes, bytes + one.length * 4}});
  }
  return copies;
}

Plugin attached(IPluginV3 &plugin, Context &context, const Tensors &tensors) {
  auto *runtime = static_cast<IPluginV3OneRuntime *>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  Plugin made(runtime->attachToContext(&context));
  auto *own = static_cast<IPluginV3OneRuntime *>(made->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  expect(own->onShapeChange(tensors.in.data(), static_cast<int32_t>(tensors.in.size()), tensors.out.data(),
                            static_cast<int32_t>(tensors.out.size())) == 0,
         "onShapeChange");
  return made;
}

void run_case(const Node &node, DataType type, TensorFormat format, bool host_only) {
  printf("%s, %s, %s\n", node.label.c_str(), type == DataType::kHALF ? "fp16" : "bf16",
         format == TensorFormat::kHWC8 ? "kHWC8" : "kLINEAR");
  Tensors tensors;
  for (size_t index = 0; index < node.shapes.size(); ++index) {
    tensors.in.push_back(description(node.shapes[index], type, node.maps[index] ? format : TensorFormat::kLINEAR));
  }
  for (const std::vector<int64_t> &shape : node.results()) {
    tensors.out.push_back(description(shape, type, format));
    tensors.layouts.push_back({shape, format});
  }

  // Build phase
  Plugin original = create(node, node.fields, TensorRTPhase::kBUILD);
  expect(original != nullptr, "createPlugin");
  if (original == nullptr) return;
  Plugin plugin(original->clone());
  original.reset();
  auto *core = static_cast<IPluginV3OneCore *>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
  auto *build = static_cast<IPluginV3OneBuild *>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
  expect(core->getPluginName() == node.name && !strcmp(core->getPluginVersion(), "1") &&
             !strcmp(core->getPluginNamespace(), "ribsr"), "name, version, namespace");
  const int32_t outputs = static_cast<int32_t>(tensors.out.size());
  expect(build->getNbOutputs() == outputs, "as many outputs as wanted");
  std::vector<DataType> output_types(outputs);
  const std::vector<DataType> types(node.shapes.size(), type);
  const int32_t inputs = static_cast<int32_t>(types.size());
  expect(build->getOutputDataTypes(output_types.data(), outputs, types.data(), inputs) == 0 &&
             output_types == std::vector<DataType>(outputs, type), "the outputs' type is the inputs'");
  check_shapes(node, *build);
  check_formats(node, *build);
  tensors.workspace = check_configuration(node, *build, tensors);
  printf("    workspace of %zu bytes\n", tensors.workspace);
  const std::string id = build->getTimingCacheID();

  // What an engine keeps of it
  Context context;
  Plugin first = attached(*plugin, context, tensors);
  auto *runtime = static_cast<IPluginV3OneRuntime *>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  const std::vector<Field> kept = copied(runtime->getFieldsToSerialize());
  plugin.reset();
  Plugin loaded = create(node, kept, TensorRTPhase::kRUNTIME);
  expect(loaded != nullptr, "createPlugin from the serialised fields");
  if (loaded == nullptr) return;
  auto *loaded_build = static_cast<IPluginV3OneBuild *>(loaded->getCapabilityInterface(PluginCapabilityType::kBUILD));
  expect(id == loaded_build->getTimingCacheID(), "the same attributes after serialisation: " + id);
  Plugin second = attached(*loaded, context, tensors), third = attached(*loaded, context, tensors);

  if (host_only) {  // the kernel's own checks come before it touches a device
    const std::vector<const void *> none(node.shapes.size(), nullptr);
    std::vector<void *> nowhere(outputs, nullptr);
    auto *own = static_cast<IPluginV3OneRuntime *>(second->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    refused("null", [&] {
      return own->enqueue(tensors.in.data(), tensors.out.data(), none.data(), nowhere.data(), nullptr, nullptr) == 0;
    });
    return;
  }

  Arrays values;
  uint32_t random = 12345;
  for (size_t index = 0; index < node.shapes.size(); ++index) {
    const Layout layout{node.shapes[index], tensors.in[index].format};
    std::vector<uint16_t> memory(layout.size(), kPoison);  // also where channels are padded
    values.emplace_back(volume(node.shapes[index]));
    for (size_t element = 0; element < values.back().size(); ++element) {
      random = random * 1664525u + 1013904223u;
      const uint16_t bits = to_bits((random >> 8) / 8388608.0 - 1.0, type);
      memory[layout.at(element)] = bits;
      values.back()[element] = to_value(bits, type);
    }
    tensors.inputs.push_back(upload(memory));
  }
  const Results results = enqueue(*first, tensors);
  const Arrays expected = node.reference(values);
  for (size_t index = 0; index < results.size(); ++index) {
    compare(results[index], expected[index], tensors.layouts[index], type);
  }
  Results again, beside;
  std::thread other([&] { beside = enqueue(*third, tensors); });  // two contexts of one engine at once
  again = enqueue(*second, tensors);
  other.join();
  expect(again == results && beside == results, "the same bits from the plugin made of the serialised fields");
  for (void *memory : tensors.inputs) cuda(cudaFree(memory), "cudaFree");
}

void bad_attributes() {
  printf("bad attributes\n");
  const std::vector<Field> good{ints("window", {16, 16}), ints("heads", {2}), ints("shift", {0, 0}),
                                real("scale", 0.25f), ints("gate_sigmoid", {0})};
  const auto attention = [&](const char *text, const Field &changed) {
    std::vector<Field> fields;
    for (const Field &one : good) fields.push_back(one.name == changed.name ? changed : one);
    refused(text, [&] { return create({"", "CyclicWindowAttention"}, fields, TensorRTPhase::kBUILD) != nullptr; });
  };
  attention("window must be 2 int32", ints("window", {16}));
  attention("window is 16, 129", ints("window", {16, 129}));
  attention("window is 4294967312, more than 32 bits", longs("window", {4294967312, 16}));
  attention("heads is 0", ints("heads", {0}));
  attention("heads must be 1 int32", real("heads", 2.0f));
  attention("shift must be 2 int32", ints("shift", {0, 0, 0}));
  attention("scale is nan", real("scale", NAN));
  attention("scale is -1", real("scale", -1.0f));
  attention("gate_sigmoid is 2", ints("gate_sigmoid", {2}));
  const auto other = [&](const char *text, const char *name, const std::vector<Field> &fields) {
    refused(text, [&] { return create({"", name}, fields, TensorRTPhase::kRUNTIME) != nullptr; });
  };
  other("window is missing", "CyclicWindowAttention", {});
  other("scale is missing", "CyclicWindowAttention", {good[0], good[1], good[2]});
  other("gate_sigmoid is missing", "CyclicWindowAttention", {good[0], good[1], good[2], good[3]});
  other("epsilon is missing", "ChannelLayerNorm", {real("eps", 1e-5f)});
  other("epsilon is -1", "ChannelLayerNorm", {real("epsilon", -1.0f)});
  other("epsilon is -2", "FeedForward", {real("epsilon", -2.0f)});
  other("epsilon is -3", "AttentionInputs", {real("epsilon", -3.0f)});
  other("add_gelu is 2", "DepthwiseConv3x3", {ints("add_gelu", {2}), ints("input_gelu", {0})});
  other("input_gelu is -1", "DepthwiseConv3x3", {ints("add_gelu", {1}), ints("input_gelu", {-1})});
  refused("epsilon is missing", [&] {
    return creator_of("ChannelLayerNorm")->createPlugin("node", nullptr, TensorRTPhase::kBUILD) != nullptr;
  });
}

void load(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    printf("FAILED: %s\n", dlerror());
    exit(1);
  }
  const auto set = reinterpret_cast<void (*)(ILoggerFinder *)>(dlsym(library, "setLoggerFinder"));
  const auto get = reinterpret_cast<IPluginCreatorInterface *const *(*)(int32_t &)>(dlsym(library, "getCreators"));
  if (set == nullptr || get == nullptr) {
    printf("FAILED: no setLoggerFinder or getCreators in %s\n", path);
    exit(1);
  }
  set(&finder);
  int32_t count = 0;
  IPluginCreatorInterface *const *list = get(count);
  expect(count == 5, "five creators");
  for (int32_t index = 0; index < count; ++index) {
    const InterfaceInfo info = list[index]->getInterfaceInfo();
    expect(!strcmp(info.kind, "PLUGIN CREATOR_V3ONE") && info.major == 1, "an IPluginCreatorV3One");
    creators.push_back(static_cast<IPluginCreatorV3One *>(list[index]));
    expect(!strcmp(creators.back()->getPluginVersion(), "1") && !strcmp(creators.back()->getPluginNamespace(), "ribsr"),
           "version and namespace");
  }
}

bool is_hopper() {
  int device = 0, major = 0, minor = 0;
  cuda(cudaGetDevice(&device), "device");
  cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
  return major == 9 && minor == 0;
}

void check_names(const char *name, const std::vector<std::string> &names) {
  const PluginFieldCollection *fields = creator_of(name)->getFieldNames();
  expect(fields->nbFields == static_cast<int32_t>(names.size()), std::string(name) + "'s attributes");
  for (size_t index = 0; index < names.size(); ++index) {
    expect(fields->fields[index].name == names[index], names[index]);
  }
}

}  // namespace

int main(int count, char **arguments) {
  if (count < 2) {
    printf("usage: v3_driver LIBRARY [--host-only]\n");
    return 2;
  }
  const bool host_only = count > 2 && !strcmp(arguments[2], "--host-only");
  setvbuf(stdout, nullptr, _IOLBF, 0);
  load(arguments[1]);
  check_names("CyclicWindowAttention", {"window", "heads", "shift", "scale", "gate_sigmoid"});
  check_names("ChannelLayerNorm", {"epsilon"});
  check_names("DepthwiseConv3x3", {"add_gelu", "input_gelu"});
  check_names("FeedForward", {"epsilon"});
  check_names("AttentionInputs", {"epsilon"});
  bad_attributes();
  const bool wide = host_only || is_hopper();
  for (const Node &node : nodes()) {
    if (node.hopper && !wide) continue;
    for (const DataType type : {DataType::kHALF, DataType::kBF16})
      for (const TensorFormat format : {TensorFormat::kHWC8, TensorFormat::kLINEAR}) {
        if (format == TensorFormat::kLINEAR && !node.linear) continue;
        run_case(node, type, format, host_only);
        expect(logger.lines.empty(), "nothing was logged");
        for (const std::string &line : logger.lines) printf("    %s\n", line.c_str());
        logger.lines.clear();
      }
  }
  printf(failures == 0 ? "all passed\n" : "%d failed\n", failures.load());
  return failures == 0 ? 0 : 1;
}
