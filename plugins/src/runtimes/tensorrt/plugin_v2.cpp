// The operators as IPluginV2DynamicExt, for TensorRT 8 and 9.
#include <cstring>
#include <new>

#include "runtimes/tensorrt/common.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // of IPluginV2, in favour of what 8.6 does not have

namespace ribsr::tensorrt {
namespace {

using namespace nvinfer1;

template <class Operator>
class Plugin final : public IPluginV2DynamicExt {
 public:
  explicit Plugin(const Operator &made) noexcept : operator_(made) {}

  IPluginV2DynamicExt *clone() const noexcept override { return new (std::nothrow) Plugin(operator_); }
  void destroy() noexcept override { delete this; }
  const char *getPluginType() const noexcept override { return Operator::name; }
  const char *getPluginVersion() const noexcept override { return kVersion; }
  const char *getPluginNamespace() const noexcept override { return kNamespace; }
  void setPluginNamespace(const char *) noexcept override {}  // it has one of its own
  int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}

  int32_t getNbOutputs() const noexcept override { return kOutputs<Operator>; }
  DataType getOutputDataType(int32_t, const DataType *types, int32_t) const noexcept override { return types[0]; }

  DimsExprs getOutputDimensions(int32_t index, const DimsExprs *inputs, int32_t count, IExprBuilder &) noexcept override {
    DimsExprs output{};
    if (!output_shape<Operator>(index, inputs, count, &output)) output.nbDims = -1;
    return output;
  }

  bool supportsFormatCombination(int32_t position, const PluginTensorDesc *tensors, int32_t,
                                 int32_t) noexcept override {
    return supports_at<Operator>(position, tensors[0], tensors[position]);
  }

  // It cannot refuse: what it reports here makes enqueue fail later.
  void configurePlugin(const DynamicPluginTensorDesc *in, int32_t, const DynamicPluginTensorDesc *,
                       int32_t) noexcept override {
    fits(operator_, in);
  }

  size_t getWorkspaceSize(const PluginTensorDesc *in, int32_t, const PluginTensorDesc *,
                          int32_t) const noexcept override {
    return operator_.workspace(tensors<Operator>(in).data());
  }

  int32_t enqueue(const PluginTensorDesc *in, const PluginTensorDesc *, const void *const *inputs,
                  void *const *outputs, void *workspace, cudaStream_t stream) noexcept override {
    return tensorrt::enqueue(operator_, in, inputs, outputs, workspace, stream);
  }

  size_t getSerializationSize() const noexcept override { return sizeof(Operator); }
  void serialize(void *buffer) const noexcept override { memcpy(buffer, &operator_, sizeof(Operator)); }

 private:
  static_assert(std::is_trivially_copyable_v<Operator>, "serialised as it lies in memory");
  const Operator operator_;
};

template <class Operator>
class Creator final : public IPluginCreator {
 public:
  const char *getPluginName() const noexcept override { return Operator::name; }
  const char *getPluginVersion() const noexcept override { return kVersion; }
  const char *getPluginNamespace() const noexcept override { return kNamespace; }
  void setPluginNamespace(const char *) noexcept override {}
  const PluginFieldCollection *getFieldNames() noexcept override { return &names_; }

  IPluginV2 *createPlugin(const char *, const PluginFieldCollection *fields) noexcept override {
    const auto made = create<Operator>(fields);
    return made ? new (std::nothrow) Plugin<Operator>(*made) : nullptr;
  }

  IPluginV2 *deserializePlugin(const char *, const void *data, size_t length) noexcept override {
    if (length != sizeof(Operator)) {
      report("%s: the engine holds %zu bytes for it instead of %zu: it was built with another version of this library",
             Operator::name, length, sizeof(Operator));
      return nullptr;
    }
    Operator made;
    memcpy(&made, data, length);
    return reported(made.valid()) ? new (std::nothrow) Plugin<Operator>(made) : nullptr;
  }

 private:
  decltype(field_names<Operator>()) fields_ = field_names<Operator>();
  const PluginFieldCollection names_{static_cast<int32_t>(fields_.size()), fields_.data()};
};

}  // namespace
}  // namespace ribsr::tensorrt

// What IPluginRegistry::loadLibrary looks for.
extern "C" {

[[gnu::visibility("default")]] void setLoggerFinder(nvinfer1::ILoggerFinder *finder) {
  ribsr::tensorrt::set_logger_finder(finder);
}

[[gnu::visibility("default")]] nvinfer1::IPluginCreator *const *getPluginCreators(int32_t &count) {
  using namespace ribsr::tensorrt;
  return creators<nvinfer1::IPluginCreator, Creator>(count, TensorRTs{});
}

}  // extern "C"
