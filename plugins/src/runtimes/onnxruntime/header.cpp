// interface.h against ONNX Runtime's own header. Compiled only where that one is named.
#include <onnxruntime_c_api.h>

#include "runtimes/onnxruntime/interface.h"

namespace ribsr::onnxruntime {

static_assert(ORT_API_VERSION >= kParallelVersion, "this ONNX Runtime is older than the first that the operators run in");
static_assert(ORT_FAIL == kFail && ORT_INVALID_ARGUMENT == kInvalidArgument && OrtMemTypeDefault == kDevice,
              "interface.h has other numbers of errors or memory");
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == kFloat && ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 == kFloat16 &&
                  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 == kBFloat16,
              "interface.h has other numbers of types");
static_assert(INPUT_OUTPUT_REQUIRED == kRequired && INPUT_OUTPUT_OPTIONAL == kOptional,
              "interface.h has other numbers of required and optional");

#define RIBSR_SAME(ours, theirs, member) \
  static_assert(offsetof(ours, member) == offsetof(theirs, member), "interface.h has " #member " in another place")

static_assert(sizeof(OrtErrorCode) == sizeof(Code) && sizeof(ONNXTensorElementDataType) == sizeof(Type) &&
              sizeof(OrtCustomOpInputOutputCharacteristic) == sizeof(Presence) && sizeof(OrtMemType) == sizeof(Memory),
              "interface.h has enumerations of another size");

RIBSR_SAME(Api, OrtApi, CreateStatus);
RIBSR_SAME(Api, OrtApi, CreateCustomOpDomain);
RIBSR_SAME(Api, OrtApi, CustomOpDomain_Add);
RIBSR_SAME(Api, OrtApi, AddCustomOpDomain);
RIBSR_SAME(Api, OrtApi, GetTensorMutableData);
RIBSR_SAME(Api, OrtApi, GetDimensionsCount);
RIBSR_SAME(Api, OrtApi, GetDimensions);
RIBSR_SAME(Api, OrtApi, GetTensorTypeAndShape);
RIBSR_SAME(Api, OrtApi, KernelInfoGetAttribute_float);
RIBSR_SAME(Api, OrtApi, KernelInfoGetAttribute_int64);
RIBSR_SAME(Api, OrtApi, KernelContext_GetInput);
RIBSR_SAME(Api, OrtApi, KernelContext_GetOutput);
RIBSR_SAME(Api, OrtApi, ReleaseStatus);
RIBSR_SAME(Api, OrtApi, ReleaseTensorTypeAndShapeInfo);
RIBSR_SAME(Api, OrtApi, KernelInfoGetAttributeArray_int64);
RIBSR_SAME(Api, OrtApi, KernelContext_GetGPUComputeStream);
RIBSR_SAME(Api, OrtApi, KernelContext_ParallelFor);
RIBSR_SAME(ApiBase, OrtApiBase, GetApi);
RIBSR_SAME(ApiBase, OrtApiBase, GetVersionString);
RIBSR_SAME(CustomOp, OrtCustomOp, version);
RIBSR_SAME(CustomOp, OrtCustomOp, CreateKernel);
RIBSR_SAME(CustomOp, OrtCustomOp, GetName);
RIBSR_SAME(CustomOp, OrtCustomOp, GetExecutionProviderType);
RIBSR_SAME(CustomOp, OrtCustomOp, GetInputType);
RIBSR_SAME(CustomOp, OrtCustomOp, GetInputTypeCount);
RIBSR_SAME(CustomOp, OrtCustomOp, GetOutputType);
RIBSR_SAME(CustomOp, OrtCustomOp, GetOutputTypeCount);
RIBSR_SAME(CustomOp, OrtCustomOp, KernelDestroy);
RIBSR_SAME(CustomOp, OrtCustomOp, GetInputCharacteristic);
RIBSR_SAME(CustomOp, OrtCustomOp, GetOutputCharacteristic);
RIBSR_SAME(CustomOp, OrtCustomOp, GetInputMemoryType);
RIBSR_SAME(CustomOp, OrtCustomOp, CreateKernelV2);
RIBSR_SAME(CustomOp, OrtCustomOp, KernelComputeV2);

}  // namespace ribsr::onnxruntime
