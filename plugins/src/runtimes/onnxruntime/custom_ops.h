// The operators as custom operators of ONNX Runtime: what its providers share. Maps are channels-last there: a node's maps
// are [B, H, W, C].
//
// What an operator is compiled for is a Variant: a provider and a type, with
//   provider       its name
//   type, dtype    of all tensors, as ONNX Runtime and ribsr_kernels.h number them
//   workspaces     whether operators that may need memory besides their results have it as one more output, which nothing
//                  reads, so that ONNX Runtime knows from when to when it is in use
//   launch         calls run(stream) with what the C interface takes as `stream`; a status
#pragma once

#include <cstdio>
#include <iterator>
#include <mutex>
#include <new>
#include <tuple>

#include "ribsr_kernels.h"
#include "runtimes/onnxruntime/interface.h"
#include "runtimes/operators.h"

namespace ribsr::onnxruntime {
namespace {

using namespace ribsr::runtimes;

OrtStatus *failed(const Api *api, Code code) noexcept { return api->CreateStatus(code, complaint()); }

// Leave with a status that is none of success.
#define RIBSR_TRY(call)                                     \
  do {                                                      \
    if (OrtStatus *status = (call); status != nullptr) return status; \
  } while (false)

OrtStatus *read_attribute(const Api *api, const OrtKernelInfo *info, const char *op, const Attribute &wanted) noexcept {
  void *values = const_cast<void *>(wanted.values);
  if (wanted.kind == Kind::kFloat32) {
    return api->KernelInfoGetAttribute_float(info, wanted.name, static_cast<float *>(values));
  }
  int64_t given[2] = {};
  if (wanted.length == 1) {
    RIBSR_TRY(api->KernelInfoGetAttribute_int64(info, wanted.name, given));
  } else {
    size_t count = static_cast<size_t>(wanted.length);
    RIBSR_TRY(api->KernelInfoGetAttributeArray_int64(info, wanted.name, given, &count));
    if (count != static_cast<size_t>(wanted.length)) {
      complain("%s: attribute %s must be %d values", op, wanted.name, wanted.length);
      return failed(api, kInvalidArgument);
    }
  }
  for (int32_t index = 0; index < wanted.length; ++index) {
    if (given[index] != static_cast<int32_t>(given[index])) {
      complain("%s: attribute %s is %lld, more than 32 bits", op, wanted.name, static_cast<long long>(given[index]));
      return failed(api, kInvalidArgument);
    }
    static_cast<int32_t *>(values)[index] = static_cast<int32_t>(given[index]);
  }
  return nullptr;
}

// The dimensions of a value as they are in ONNX Runtime.
OrtStatus *read_shape(const Api *api, const OrtValue *value, Tensor *tensor) noexcept {
  OrtTensorTypeAndShapeInfo *info = nullptr;
  RIBSR_TRY(api->GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  OrtStatus *status = api->GetDimensionsCount(info, &rank);
  if (status == nullptr && rank > std::size(tensor->dims)) {
    complain("a tensor has %zu dimensions", rank);
    status = failed(api, kInvalidArgument);
  }
  if (status == nullptr) status = api->GetDimensions(info, tensor->dims, rank);
  tensor->rank = static_cast<int32_t>(rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

// [B, H, W, C] as the operators know it.
void order_as_map(Tensor *tensor) noexcept {
  int64_t *dims = tensor->dims;
  const int64_t height = dims[1], width = dims[2], channels = dims[3];
  dims[1] = channels;
  dims[2] = height;
  dims[3] = width;
}

OrtStatus *read_input(const Api *api, const OrtKernelContext *context, size_t index, bool is_map, Tensor *tensor,
                      const void **data) noexcept {
  const OrtValue *value = nullptr;
  RIBSR_TRY(api->KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return nullptr;  // one that may be missing
  RIBSR_TRY(read_shape(api, value, tensor));
  if (is_map && tensor->rank == 4) order_as_map(tensor);
  void *found = nullptr;
  RIBSR_TRY(api->GetTensorMutableData(const_cast<OrtValue *>(value), &found));
  *data = found;
  return nullptr;
}

OrtStatus *make_output(const Api *api, OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank,
                       void **data) noexcept {
  OrtValue *value = nullptr;
  RIBSR_TRY(api->KernelContext_GetOutput(context, index, dims, rank, &value));
  return value != nullptr ? api->GetTensorMutableData(value, data) : nullptr;
}

template <class Operator, class Variant>
struct Kernel {
  static constexpr bool has_workspace = Operator::has_workspace && Variant::workspaces;

  const Api *api;
  Operator made;
  int32_t dtype;

  OrtStatus *run(OrtKernelContext *context) const noexcept {
    Tensor tensors[kInputs<Operator>] = {};
    const void *inputs[kInputs<Operator>] = {};
    for (int32_t index = 0; index < kInputs<Operator>; ++index) {
      tensors[index].dtype = dtype;
      tensors[index].layout = Layout::kChannelsLast;
      RIBSR_TRY(read_input(api, context, index, Operator::maps[index], &tensors[index], &inputs[index]));
    }
    if (!made.fits(tensors)) return failed(api, kInvalidArgument);
    void *outputs[kOutputs<Operator>] = {};
    const int64_t *like = tensors[Operator::like].dims;
    for (int32_t index = 0; index < kOutputs<Operator>; ++index) {
      const Dimension channels = Operator::outputs[index];
      const int64_t dims[] = {like[0], like[2], like[3], tensors[channels.input].dims[channels.axis]};
      RIBSR_TRY(make_output(api, context, index, dims, 4, &outputs[index]));
    }
    void *workspace = nullptr;
    if constexpr (has_workspace) {
      const int64_t halves = static_cast<int64_t>(made.workspace(tensors) + 1) / 2;
      RIBSR_TRY(make_output(api, context, kOutputs<Operator>, &halves, 1, &workspace));
    }
    bool succeeded = false;
    RIBSR_TRY(Variant::launch(api, context, [&](void *stream) {
      succeeded = enqueue(made, tensors, inputs, outputs, workspace, stream);
    }));
    return succeeded ? nullptr : failed(api, kFail);
  }
};

template <class Operator, class Variant>
class Entry final : public CustomOp {
 public:
  Entry() noexcept : CustomOp{} {
    version = kVersion;
    GetName = [](const CustomOp *) { return Operator::name; };
    GetExecutionProviderType = [](const CustomOp *) { return Variant::provider; };
    GetInputType = GetOutputType = [](const CustomOp *, size_t) { return Variant::type; };
    GetInputTypeCount = [](const CustomOp *) -> size_t { return kInputs<Operator>; };
    GetOutputTypeCount = [](const CustomOp *) -> size_t { return kOutputs<Operator> + Made::has_workspace; };
    GetInputCharacteristic = [](const CustomOp *, size_t index) {
      return static_cast<int32_t>(index) == Operator::optional ? kOptional : kRequired;
    };
    GetOutputCharacteristic = [](const CustomOp *, size_t) { return kRequired; };
    GetInputMemoryType = [](const CustomOp *, size_t) { return kDevice; };
    CreateKernelV2 = create;
    KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
      return static_cast<const Made *>(kernel)->run(context);
    };
    KernelDestroy = [](void *kernel) { delete static_cast<Made *>(kernel); };
  }

 private:
  using Made = Kernel<Operator, Variant>;

  static OrtStatus *create(const CustomOp *, const Api *api, const OrtKernelInfo *info, void **kernel) {
    Operator made{};
    for (const Attribute &wanted : made.attributes()) {
      RIBSR_TRY(read_attribute(api, info, Operator::name, wanted));
    }
    if (!made.valid()) return failed(api, kInvalidArgument);
    *kernel = new (std::nothrow) Made{api, made, Variant::dtype};
    return *kernel != nullptr ? nullptr : api->CreateStatus(kFail, "out of memory");
  }
};

template <class Operator, class... Variants>
OrtStatus *add(const Api *api, OrtCustomOpDomain *domain) noexcept {
  OrtStatus *status = nullptr;
  const auto add_one = [&](const CustomOp &entry) { status = api->CustomOpDomain_Add(domain, &entry); };
  static const std::tuple<Entry<Operator, Variants>...> entries;
  (void)((add_one(std::get<Entry<Operator, Variants>>(entries)), status == nullptr) && ...);
  return status;
}

template <class... Variants, class... Operators>
OrtStatus *add_all(const Api *api, OrtCustomOpDomain *domain, List<Operators...>) noexcept {
  OrtStatus *status = nullptr;
  (void)((status = add<Operators, Variants...>(api, domain), status == nullptr) && ...);
  return status;
}

// ONNX Runtime's interface of this version or later; null, with a status, if it is older. what: needs it.
const Api *api_of(const ApiBase *base, uint32_t version, const char *what, OrtStatus **status) noexcept {
  const Api *api = base->GetApi(version);
  if (api == nullptr) {
    char message[128];
    snprintf(message, sizeof(message), "%s need ONNX Runtime 1.%u or later, this is %s", what, version,
             base->GetVersionString());
    *status = base->GetApi(1)->CreateStatus(kFail, message);
  }
  return api;
}

// Adds the domain of this name, which has every operator in these variants, to a session's options. Sessions go on using
// the domain, which is made once and stays until the process ends.
template <class... Variants>
OrtStatus *add_domain(const Api *api, OrtSessionOptions *options, const char *name) noexcept {
  static std::mutex mutex;
  static OrtCustomOpDomain *domain = nullptr;
  const std::lock_guard lock(mutex);
  if (domain == nullptr) {
    OrtCustomOpDomain *made = nullptr;
    RIBSR_TRY(api->CreateCustomOpDomain(name, &made));
    RIBSR_TRY(add_all<Variants...>(api, made, Every{}));
    domain = made;
  }
  return api->AddCustomOpDomain(options, domain);
}

}  // namespace
}  // namespace ribsr::onnxruntime
