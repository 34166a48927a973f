// The operators as ONNX Runtime's custom operators for its CUDA provider, in float16 and bfloat16. Maps are
// channels-last there: a node's maps are [B, H, W, C]. Kernels run on the stream that ONNX Runtime gives them, and what
// memory they need comes from it: an operator with a workspace has it as one more output, which nothing reads, so that
// ONNX Runtime knows from when to when it is in use.
#include <cstdio>
#include <iterator>
#include <mutex>
#include <new>

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

template <class Operator>
struct Kernel {
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
    void *workspace = nullptr, *stream = nullptr;
    if constexpr (Operator::has_workspace) {
      const int64_t halves = static_cast<int64_t>(made.workspace(tensors) + 1) / 2;
      RIBSR_TRY(make_output(api, context, kOutputs<Operator>, &halves, 1, &workspace));
    }
    RIBSR_TRY(api->KernelContext_GetGPUComputeStream(context, &stream));
    return enqueue(made, tensors, inputs, outputs, workspace, stream) ? nullptr : failed(api, kFail);
  }
};

// One operator in one type.
template <class Operator>
class Entry final : public CustomOp {
 public:
  explicit Entry(Type type) noexcept : CustomOp{}, type_(type) {
    version = kVersion;
    GetName = [](const CustomOp *) { return Operator::name; };
    GetExecutionProviderType = [](const CustomOp *) { return "CUDAExecutionProvider"; };
    GetInputType = GetOutputType = [](const CustomOp *op, size_t) { return static_cast<const Entry *>(op)->type_; };
    GetInputTypeCount = [](const CustomOp *) -> size_t { return kInputs<Operator>; };
    GetOutputTypeCount = [](const CustomOp *) -> size_t { return kOutputs<Operator> + Operator::has_workspace; };
    GetInputCharacteristic = [](const CustomOp *, size_t index) {
      return static_cast<int32_t>(index) == Operator::optional ? kOptional : kRequired;
    };
    GetOutputCharacteristic = [](const CustomOp *, size_t) { return kRequired; };
    GetInputMemoryType = [](const CustomOp *, size_t) { return kDevice; };
    CreateKernelV2 = create;
    KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
      return static_cast<const Kernel<Operator> *>(kernel)->run(context);
    };
    KernelDestroy = [](void *kernel) { delete static_cast<Kernel<Operator> *>(kernel); };
  }

 private:
  static OrtStatus *create(const CustomOp *op, const Api *api, const OrtKernelInfo *info, void **kernel) {
    Operator made{};
    for (const Attribute &wanted : made.attributes()) {
      RIBSR_TRY(read_attribute(api, info, Operator::name, wanted));
    }
    if (!made.valid()) return failed(api, kInvalidArgument);
    const bool half = static_cast<const Entry *>(op)->type_ == kFloat16;
    *kernel = new (std::nothrow) Kernel<Operator>{api, made, half ? RIBSR_FLOAT16 : RIBSR_BFLOAT16};
    return *kernel != nullptr ? nullptr : api->CreateStatus(kFail, "out of memory");
  }

  const Type type_;
};

template <class Operator>
OrtStatus *add(const Api *api, OrtCustomOpDomain *domain) noexcept {
  static const Entry<Operator> half(kFloat16), brain(kBFloat16);
  RIBSR_TRY(api->CustomOpDomain_Add(domain, &half));
  return api->CustomOpDomain_Add(domain, &brain);
}

template <class... Operators>
OrtStatus *add_all(const Api *api, OrtCustomOpDomain *domain, List<Operators...>) noexcept {
  OrtStatus *status = nullptr;
  (void)((status = add<Operators>(api, domain), status == nullptr) && ...);
  return status;
}

}  // namespace
}  // namespace ribsr::onnxruntime

// What ONNX Runtime looks for in a library of custom operators. Sessions go on using the domain, which stays until the
// process ends.
extern "C" [[gnu::visibility("default")]] OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                                                                       const ribsr::onnxruntime::ApiBase *base) {
  using namespace ribsr::onnxruntime;
  const Api *api = base->GetApi(kVersion);
  if (api == nullptr) {
    char message[128];
    snprintf(message, sizeof(message), "ribsr's operators need ONNX Runtime 1.%u or later, this is %s", kVersion,
             base->GetVersionString());
    return base->GetApi(1)->CreateStatus(kFail, message);
  }
  static std::mutex mutex;
  static OrtCustomOpDomain *domain = nullptr;
  const std::lock_guard lock(mutex);
  if (domain == nullptr) {
    OrtCustomOpDomain *made = nullptr;
    RIBSR_TRY(api->CreateCustomOpDomain(ribsr::runtimes::kDomain, &made));
    RIBSR_TRY(add_all(api, made, ribsr::runtimes::Every{}));
    domain = made;
  }
  return api->AddCustomOpDomain(options, domain);
}
