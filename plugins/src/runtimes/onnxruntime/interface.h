// What is used here of ONNX Runtime's C interface, written down because its header comes with no package. Functions are
// only ever appended to it, so that their places are those of every version from kVersion on, of the last one
// from kParallelVersion on; header.cpp compares with the real header where one is named.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

namespace ribsr::onnxruntime {

constexpr uint32_t kVersion = 16;          // the first whose kernels can fail with a status
constexpr uint32_t kParallelVersion = 17;  // the first that lends its threads: KernelContext_ParallelFor

// Enumerations there, as long as an int.
using Code = int;
constexpr Code kFail = 1, kInvalidArgument = 2;
using Type = int;
constexpr Type kFloat = 1, kFloat16 = 10, kBFloat16 = 16;
using Presence = int;
constexpr Presence kRequired = 0, kOptional = 1;
using Memory = int;
constexpr Memory kDevice = 0;

struct CustomOp;

// Functions that return a status return null when they succeed.
struct Api {
  template <int count>
  using Unused = void *[count];

  OrtStatus *(*CreateStatus)(int code, const char *message);
  Unused<25> before_domains;
  OrtStatus *(*CreateCustomOpDomain)(const char *name, OrtCustomOpDomain **made);
  OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *domain, const CustomOp *op);
  OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *options, OrtCustomOpDomain *domain);
  Unused<22> before_data;
  OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **data);
  Unused<9> before_dimensions;
  OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *info, size_t *count);
  OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *info, int64_t *dims, size_t count);
  Unused<2> before_shape;
  OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtTensorTypeAndShapeInfo **info);
  Unused<19> before_attributes;
  OrtStatus *(*KernelInfoGetAttribute_float)(const OrtKernelInfo *info, const char *name, float *value);
  OrtStatus *(*KernelInfoGetAttribute_int64)(const OrtKernelInfo *info, const char *name, int64_t *value);
  Unused<3> before_input;
  OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *context, size_t index, const OrtValue **value);
  OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *context, size_t index, const int64_t *dims, size_t count,
                                        OrtValue **value);
  Unused<1> before_status;
  void (*ReleaseStatus)(OrtStatus *status);
  Unused<5> before_info;
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *info);
  Unused<63> before_arrays;
  OrtStatus *(*KernelInfoGetAttributeArray_int64)(const OrtKernelInfo *info, const char *name, int64_t *values,
                                                  size_t *count);
  Unused<29> before_stream;
  OrtStatus *(*KernelContext_GetGPUComputeStream)(const OrtKernelContext *context, void **stream);
  Unused<80> before_parallel;
  OrtStatus *(*KernelContext_ParallelFor)(const OrtKernelContext *context, void (*task)(void *data, size_t index),
                                          size_t count, size_t batches, void *data);
};

struct ApiBase {
  const Api *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)();
};

// An operator as ONNX Runtime asks about it; as long as in interface kVersion.
struct CustomOp {
  uint32_t version;
  void *(*CreateKernel)(const CustomOp *, const Api *, const OrtKernelInfo *);
  const char *(*GetName)(const CustomOp *);
  const char *(*GetExecutionProviderType)(const CustomOp *);
  Type (*GetInputType)(const CustomOp *, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp *);
  Type (*GetOutputType)(const CustomOp *, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp *);
  void (*KernelCompute)(void *kernel, OrtKernelContext *);
  void (*KernelDestroy)(void *kernel);
  Presence (*GetInputCharacteristic)(const CustomOp *, size_t index);
  Presence (*GetOutputCharacteristic)(const CustomOp *, size_t index);
  Memory (*GetInputMemoryType)(const CustomOp *, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp *);
  int (*GetVariadicInputHomogeneity)(const CustomOp *);
  int (*GetVariadicOutputMinArity)(const CustomOp *);
  int (*GetVariadicOutputHomogeneity)(const CustomOp *);
  OrtStatus *(*CreateKernelV2)(const CustomOp *, const Api *, const OrtKernelInfo *, void **kernel);
  OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *);
};

}  // namespace ribsr::onnxruntime
