// What the two generations of TensorRT's plugin interface share. Nothing here throws.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // TensorRT's headers use what they deprecate
#include <NvInferRuntime.h>
#pragma GCC diagnostic pop

#include <optional>
#include <tuple>
#include <type_traits>

#include "runtimes/operators.h"

namespace ribsr::tensorrt {

using namespace ribsr::runtimes;
using nvinfer1::DimsExprs;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr const char *kVersion = "1", *kNamespace = kDomain;

// Give TensorRT's logger one line, or stderr while there is no logger.
[[gnu::format(printf, 1, 2)]] void report(const char *format, ...) noexcept;
void set_logger_finder(nvinfer1::ILoggerFinder *finder) noexcept;

// The same, after reporting the operator's complaint if it did not succeed.
bool reported(bool succeeded) noexcept;

// The attributes in TensorRT's words.
template <class Operator>
auto fields(const Operator &made) noexcept {
  const auto attributes = made.attributes();
  std::array<PluginField, std::tuple_size_v<decltype(attributes)>> fields;
  for (size_t index = 0; index < fields.size(); ++index) {
    const Attribute &one = attributes[index];
    const auto type = one.kind == Kind::kInt32 ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32;
    fields[index] = PluginField{one.name, one.values, type, one.length};
  }
  return fields;
}

// Copy a node's attributes to where `wanted` points; false after reporting the first that is missing or of another
// type.
bool read_fields(const char *name, const PluginFieldCollection *given, const PluginField *wanted,
                 size_t count) noexcept;

// The operator of a node with these attributes; nothing after reporting what is wrong with them.
template <class Operator>
std::optional<Operator> create(const PluginFieldCollection *given) noexcept {
  Operator made{};
  const auto wanted = fields(made);
  if (!read_fields(Operator::name, given, wanted.data(), wanted.size()) || !reported(made.valid())) return std::nullopt;
  return made;
}

// The names and types of the attributes, without values: what the ONNX parser asks for.
template <class Operator>
auto field_names() noexcept {
  auto names = fields(Operator{});
  for (PluginField &field : names) field.data = nullptr;
  return names;
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

// A tensor that `supports` took, in the operators' words.
Tensor tensor(const PluginTensorDesc &described) noexcept;

// An operator's inputs; also of what TensorRT knows of them while it builds.
template <class Operator>
auto tensors(const PluginTensorDesc *in) noexcept {
  std::array<Tensor, kInputs<Operator>> inputs;
  for (size_t index = 0; index < inputs.size(); ++index) inputs[index] = tensor(in[index]);
  return inputs;
}

template <class Operator>
auto tensors(const nvinfer1::DynamicPluginTensorDesc *in) noexcept {
  std::array<Tensor, kInputs<Operator>> inputs;
  for (size_t index = 0; index < inputs.size(); ++index) inputs[index] = tensor(in[index].desc);
  return inputs;
}

// Whether an operator takes inputs that are described so; it is reported if not.
template <class Operator, class Description>
bool fits(const Operator &made, const Description *in) noexcept {
  return reported(made.fits(tensors<Operator>(in).data()));
}

template <class Operator>
int32_t enqueue(const Operator &made, const PluginTensorDesc *in, const void *const *inputs, void *const *outputs,
                void *workspace, cudaStream_t stream) noexcept {
  const auto described = tensors<Operator>(in);
  return reported(runtimes::enqueue(made, described.data(), inputs, outputs, workspace, stream)) ? 0 : 1;
}

// The creators of all operators, as IPluginRegistry::loadLibrary wants them.
template <class Interface, template <class> class Creator, class... Operators>
Interface *const *creators(int32_t &count, List<Operators...>) {
  static std::tuple<Creator<Operators>...> made;
  static Interface *const list[] = {&std::get<Creator<Operators>>(made)...};
  count = sizeof...(Operators);
  return list;
}

}  // namespace ribsr::tensorrt
