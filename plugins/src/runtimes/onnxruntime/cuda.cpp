// The operators for ONNX Runtime's CUDA provider, in float16 and bfloat16. Kernels run on the stream that ONNX Runtime
// gives them, in memory that comes from it.
#include "runtimes/onnxruntime/custom_ops.h"

namespace ribsr::onnxruntime {
namespace {

struct Cuda {
  static constexpr const char *provider = "CUDAExecutionProvider";
  static constexpr bool workspaces = true;

  template <class Run>
  static OrtStatus *launch(const Api *api, OrtKernelContext *context, const Run &run) noexcept {
    void *stream = nullptr;
    RIBSR_TRY(api->KernelContext_GetGPUComputeStream(context, &stream));
    run(stream);
    return nullptr;
  }
};

struct Float16 : Cuda {
  static constexpr Type type = kFloat16;
  static constexpr int32_t dtype = RIBSR_FLOAT16;
};

struct BFloat16 : Cuda {
  static constexpr Type type = kBFloat16;
  static constexpr int32_t dtype = RIBSR_BFLOAT16;
};

}  // namespace
}  // namespace ribsr::onnxruntime

// What ONNX Runtime looks for in a library of custom operators.
extern "C" [[gnu::visibility("default")]] OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                                                                       const ribsr::onnxruntime::ApiBase *base) {
  using namespace ribsr::onnxruntime;
  OrtStatus *status = nullptr;
  const Api *api = api_of(base, kVersion, "ribsr's operators", &status);
  return api != nullptr ? add_domain<Float16, BFloat16>(api, options, kDomain) : status;
}
