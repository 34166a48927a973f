// The operators for ONNX Runtime's CPU provider, in float32: in the domain `ribsr`, and with products of bfloat16 in
// `ribsr.bf16`. They run on the threads of the session.
#include <algorithm>
#include <thread>

#include "ribsr_cpu.h"
#include "runtimes/onnxruntime/custom_ops.h"

namespace ribsr::onnxruntime {
namespace {

constexpr const char *kBFloat16Domain = "ribsr.bf16";

// The threads of a session, as an executor's pool.
struct Pool {
  const Api *api;
  OrtKernelContext *context;
  OrtStatus *status;  // of the last work that it refused
};

struct Work {
  void (*task)(void *data, int64_t index);
  void *data;
};

void run_parallel(void *pool, void (*task)(void *data, int64_t index), int64_t count, void *data) noexcept {
  auto &on = *static_cast<Pool *>(pool);
  Work work{task, data};
  constexpr size_t one_by_one = 0;  // rather than in so many batches
  OrtStatus *status = on.api->KernelContext_ParallelFor(
      on.context,
      [](void *work, size_t index) {
        static_cast<const Work *>(work)->task(static_cast<Work *>(work)->data, static_cast<int64_t>(index));
      },
      static_cast<size_t>(count), one_by_one, &work);
  if (status == nullptr) return;
  if (on.status != nullptr) on.api->ReleaseStatus(on.status);
  on.status = status;
}

template <int32_t bfloat16_products>
struct Float {
  static constexpr const char *provider = "CPUExecutionProvider";
  static constexpr bool workspaces = false;
  static constexpr Type type = kFloat;
  static constexpr int32_t dtype = RIBSR_FLOAT32;

  template <class Run>
  static OrtStatus *launch(const Api *api, OrtKernelContext *context, const Run &run) noexcept {
    Pool pool{api, context, nullptr};
    RibsrExecutor executor{};
    executor.struct_size = sizeof(executor);
    executor.bfloat16_products = bfloat16_products;
    // A session does not say how many threads it has.
    executor.threads = std::max(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
    executor.parallel = run_parallel;
    executor.pool = &pool;
    run(&executor);
    return pool.status;
  }
};

}  // namespace
}  // namespace ribsr::onnxruntime

// What ONNX Runtime looks for in a library of custom operators.
extern "C" [[gnu::visibility("default")]] OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                                                                       const ribsr::onnxruntime::ApiBase *base) {
  using namespace ribsr::onnxruntime;
  OrtStatus *status = nullptr;
  const Api *api = api_of(base, kParallelVersion, "ribsr's operators for CPUs", &status);
  if (api == nullptr) return status;
  RIBSR_TRY(add_domain<Float<0>>(api, options, kDomain));
  return add_domain<Float<1>>(api, options, kBFloat16Domain);
}
