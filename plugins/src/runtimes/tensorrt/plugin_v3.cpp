// The operators as IPluginV3, for TensorRT 10 and later.
#include <algorithm>
#include <cstdio>
#include <new>

#include "runtimes/tensorrt/common.h"

namespace ribsr::tensorrt {
namespace {

using namespace nvinfer1;

template <class Operator>
class Plugin final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
 public:
  explicit Plugin(const Operator &made) noexcept : operator_(made), fields_(fields(operator_)) { describe(); }
  Plugin(const Plugin &) = delete;  // fields_ points into operator_
  Plugin &operator=(const Plugin &) = delete;

  IPluginCapability *getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore *>(this);
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild *>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime *>(this);
    }
    return nullptr;
  }
  IPluginV3 *clone() noexcept override { return new (std::nothrow) Plugin(operator_); }
  IPluginV3 *attachToContext(IPluginResourceContext *) noexcept override { return clone(); }

  const char *getPluginName() const noexcept override { return Operator::name; }
  const char *getPluginVersion() const noexcept override { return kVersion; }
  const char *getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return kOutputs<Operator>; }

  int32_t getOutputDataTypes(DataType *outputs, int32_t, const DataType *inputs, int32_t) const noexcept override {
    std::fill_n(outputs, kOutputs<Operator>, inputs[0]);
    return 0;
  }

  int32_t getOutputShapes(const DimsExprs *inputs, int32_t count, const DimsExprs *, int32_t, DimsExprs *outputs,
                          int32_t, IExprBuilder &) noexcept override {
    for (int32_t index = 0; index < kOutputs<Operator>; ++index) {
      if (!output_shape<Operator>(index, inputs, count, &outputs[index])) return 1;
    }
    return 0;
  }

  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc *tensors, int32_t,
                                 int32_t) noexcept override {
    return supports_at<Operator>(position, tensors[0].desc, tensors[position].desc);
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc *in, int32_t, const DynamicPluginTensorDesc *,
                          int32_t) noexcept override {
    return fits(operator_, in) ? 0 : 1;
  }

  size_t getWorkspaceSize(const DynamicPluginTensorDesc *in, int32_t, const DynamicPluginTensorDesc *,
                          int32_t) const noexcept override {
    return operator_.workspace(tensors<Operator>(in).data());
  }

  int32_t onShapeChange(const PluginTensorDesc *in, int32_t, const PluginTensorDesc *, int32_t) noexcept override {
    return fits(operator_, in) ? 0 : 1;
  }

  int32_t enqueue(const PluginTensorDesc *in, const PluginTensorDesc *, const void *const *inputs,
                  void *const *outputs, void *workspace, cudaStream_t stream) noexcept override {
    return tensorrt::enqueue(operator_, in, inputs, outputs, workspace, stream);
  }

  const PluginFieldCollection *getFieldsToSerialize() noexcept override { return &collection_; }
  const char *getTimingCacheID() noexcept override { return description_; }
  const char *getMetadataString() noexcept override { return description_; }

 private:
  // "ChannelLayerNorm epsilon=1e-05"
  void describe() noexcept {
    size_t end = 0;
    const auto append = [&](const char *format, auto... values) {
      const int written = snprintf(description_ + end, sizeof(description_) - end, format, values...);
      if (written > 0) end = std::min(end + static_cast<size_t>(written), sizeof(description_) - 1);
    };
    append("%s", Operator::name);
    for (const PluginField &field : fields_) {
      append(" %s", field.name);
      for (int32_t index = 0; index < field.length; ++index) {
        append("%c", index == 0 ? '=' : ',');
        if (field.type == PluginFieldType::kINT32) {
          append("%d", static_cast<const int32_t *>(field.data)[index]);
        } else {
          append("%.9g", static_cast<double>(static_cast<const float *>(field.data)[index]));
        }
      }
    }
  }

  const Operator operator_;
  const decltype(fields(operator_)) fields_;
  const PluginFieldCollection collection_{static_cast<int32_t>(fields_.size()), fields_.data()};
  char description_[160] = "";  // CyclicWindowAttention's has at most 139 characters
};

template <class Operator>
class Creator final : public IPluginCreatorV3One {
 public:
  const char *getPluginName() const noexcept override { return Operator::name; }
  const char *getPluginVersion() const noexcept override { return kVersion; }
  const char *getPluginNamespace() const noexcept override { return kNamespace; }
  const PluginFieldCollection *getFieldNames() noexcept override { return &names_; }

  // The fields of an engine are those of a node, so that the phase makes no difference.
  IPluginV3 *createPlugin(const char *, const PluginFieldCollection *fields, TensorRTPhase) noexcept override {
    const auto made = create<Operator>(fields);
    return made ? new (std::nothrow) Plugin<Operator>(*made) : nullptr;
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

[[gnu::visibility("default")]] nvinfer1::IPluginCreatorInterface *const *getCreators(int32_t &count) {
  using namespace ribsr::tensorrt;
  return creators<nvinfer1::IPluginCreatorInterface, Creator>(count, TensorRTs{});
}

}  // extern "C"
