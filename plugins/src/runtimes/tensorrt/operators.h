// What the two generations of TensorRT's plugin interface share: the operators' attributes, shapes, formats and the
// calls of the kernels. Nothing here throws.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // TensorRT's headers use what they deprecate
#include <NvInferRuntime.h>
#pragma GCC diagnostic pop

#include <array>
#include <optional>
#include <type_traits>

namespace ribsr::tensorrt {

using nvinfer1::DimsExprs;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr const char *kVersion = "1", *kNamespace = "ribsr";

// Give TensorRT's logger one line, or stderr while there is no logger.
[[gnu::format(printf, 1, 2)]] void report(const char *format, ...) noexcept;
void set_logger_finder(nvinfer1::ILoggerFinder *finder) noexcept;

// A dimension of an operator's input.
struct Dimension {
  int32_t input, axis;
};

// Each operator is the values of its node's attributes, and:
//   name      the node's op_type
//   maps      for each input whether it is a [B, C, H, W] map; the others are constants. Outputs are maps, too
//   linear    whether the maps may be kLINEAR, not kHWC8 only
//   like      the input whose dimensions the outputs have, but for their channels; their type is that of every input
//   outputs   of each output, which dimension of which input its channels are
//   fields    the attributes, where their values are
//   valid     whether the values are ones the kernel takes
//   fits      whether the inputs' shapes go together; unknown batch, height and width are -1
//   workspace bytes of device memory that run needs besides, for inputs that fit
//   run       enqueues the kernel; a status of ribsr_kernels.h
// valid and fits report what is wrong.

// What most operators are.
struct WithoutWorkspace {
  size_t workspace(const PluginTensorDesc *) const noexcept { return 0; }
};

struct CyclicWindowAttention : WithoutWorkspace {
  static constexpr const char *name = "CyclicWindowAttention";
  static constexpr std::array maps{true, false, false, true};  // qkv, rib_q, rib_k, gate
  static constexpr bool linear = true;
  static constexpr int32_t like = 3;
  static constexpr std::array outputs{Dimension{3, 1}};

  int32_t window[2];
  int32_t heads;
  int32_t shift[2];
  float scale;
  int32_t gate_sigmoid;

  std::array<PluginField, 5> fields() const noexcept;
  bool valid() const noexcept;
  bool fits(const PluginTensorDesc *in) const noexcept;
  int32_t run(const PluginTensorDesc *in, const void *const *inputs, void *const *results, void *workspace,
              cudaStream_t stream) const noexcept;
};

// What operators have in which a layer norm is: its attribute.
struct Normalising : WithoutWorkspace {
  float epsilon;

  std::array<PluginField, 1> fields() const noexcept;

 protected:
  bool valid_as(const char *name) const noexcept;
};

struct ChannelLayerNorm : Normalising {
  static constexpr const char *name = "ChannelLayerNorm";
  static constexpr std::array maps{true, false, false};  // x, weight, bias
  static constexpr bool linear = true;
  static constexpr int32_t like = 0;
  static constexpr std::array outputs{Dimension{0, 1}};

  bool valid() const noexcept { return valid_as(name); }
  bool fits(const PluginTensorDesc *in) const noexcept;
  int32_t run(const PluginTensorDesc *in, const void *const *inputs, void *const *results, void *workspace,
              cudaStream_t stream) const noexcept;
};

struct DepthwiseConv3x3 : WithoutWorkspace {
  static constexpr const char *name = "DepthwiseConv3x3";
  static constexpr std::array maps{true, false, false};  // x, weight, bias
  static constexpr bool linear = true;
  static constexpr int32_t like = 0;
  static constexpr std::array outputs{Dimension{0, 1}};

  int32_t add_gelu;
  int32_t input_gelu;

  std::array<PluginField, 2> fields() const noexcept;
  bool valid() const noexcept;
  bool fits(const PluginTensorDesc *in) const noexcept;
  int32_t run(const PluginTensorDesc *in, const void *const *inputs, void *const *results, void *workspace,
              cudaStream_t stream) const noexcept;
};

struct FeedForward : Normalising {
  static constexpr const char *name = "FeedForward";
  // x, then weight and bias of norm, expand, depthwise and contract
  static constexpr std::array maps{true, false, false, false, false, false, false, false, false};
  static constexpr bool linear = false;
  static constexpr int32_t like = 0;
  static constexpr std::array outputs{Dimension{0, 1}};

  bool valid() const noexcept { return valid_as(name); }
  bool fits(const PluginTensorDesc *in) const noexcept;
  size_t workspace(const PluginTensorDesc *in) const noexcept;
  int32_t run(const PluginTensorDesc *in, const void *const *inputs, void *const *results, void *workspace,
              cudaStream_t stream) const noexcept;
};

struct AttentionInputs : Normalising {
  static constexpr const char *name = "AttentionInputs";
  // x, then weight and bias of norm, project, depthwise and mix
  static constexpr std::array maps{true, false, false, false, false, false, false, false, false};
  static constexpr bool linear = false;
  static constexpr int32_t like = 0;
  static constexpr std::array outputs{Dimension{3, 0}, Dimension{7, 0}};  // qkv, gate: as the weights say

  bool valid() const noexcept { return valid_as(name); }
  bool fits(const PluginTensorDesc *in) const noexcept;
  size_t workspace(const PluginTensorDesc *in) const noexcept;
  int32_t run(const PluginTensorDesc *in, const void *const *inputs, void *const *results, void *workspace,
              cudaStream_t stream) const noexcept;
};

template <class Operator>
constexpr int32_t kInputs = static_cast<int32_t>(Operator::maps.size());
template <class Operator>
constexpr int32_t kOutputs = static_cast<int32_t>(Operator::outputs.size());

// Copy a node's attributes to where `wanted` points; false after reporting the first that is missing or of another
// type.
bool read_fields(const char *name, const PluginFieldCollection *given, const PluginField *wanted,
                 size_t count) noexcept;

// The operator of a node with these attributes; nothing after reporting what is wrong with them.
template <class Operator>
std::optional<Operator> create(const PluginFieldCollection *given) noexcept {
  Operator made{};
  const auto wanted = made.fields();
  if (!read_fields(Operator::name, given, wanted.data(), wanted.size()) || !made.valid()) return std::nullopt;
  return made;
}

// The names and types of the attributes, without values: what the ONNX parser asks for.
template <class Operator>
auto field_names() noexcept {
  auto fields = Operator{}.fields();
  for (PluginField &field : fields) field.data = nullptr;
  return fields;
}

// Whether a tensor may have this type and format, given those of the first input: one half-precision type for all,
// kHWC8 or, if `linear`, kLINEAR for all maps, kLINEAR for constants.
bool supports(bool is_map, bool linear, const PluginTensorDesc &first, const PluginTensorDesc &tensor) noexcept;

template <class Operator>
bool supports_at(int32_t position, const PluginTensorDesc &first, const PluginTensorDesc &tensor) noexcept {
  return supports(position >= kInputs<Operator> || Operator::maps[position], Operator::linear, first, tensor);
}

// One output's dimensions: those of the input `like`, but for the channels; false after reporting.
bool output_shape(const char *name, int32_t count, int32_t wanted, int32_t like, Dimension channels,
                  const DimsExprs *inputs, DimsExprs *output) noexcept;

template <class Operator>
bool output_shape(int32_t index, const DimsExprs *inputs, int32_t count, DimsExprs *output) noexcept {
  return output_shape(Operator::name, count, kInputs<Operator>, Operator::like, Operator::outputs[index], inputs,
                      output);
}

// The descriptions of an operator's inputs in what TensorRT knows of them while it builds.
template <class Operator>
auto descriptions(const nvinfer1::DynamicPluginTensorDesc *in) noexcept {
  std::array<PluginTensorDesc, kInputs<Operator>> inputs;
  for (size_t index = 0; index < inputs.size(); ++index) inputs[index] = in[index].desc;
  return inputs;
}

// Report the kernel library's message unless the status is RIBSR_OK; the status.
int32_t checked(const char *name, int32_t status) noexcept;

template <class Operator>
int32_t enqueue(const Operator &made, const PluginTensorDesc *in, const void *const *inputs, void *const *outputs,
                void *workspace, cudaStream_t stream) noexcept {
  if (!made.fits(in)) return 1;
  return checked(Operator::name, made.run(in, inputs, outputs, workspace, stream));
}

}  // namespace ribsr::tensorrt
