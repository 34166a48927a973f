// The functions of ribsr_cpu.h: checks, and the kernel of the instruction set that the caller, or this CPU, is for.
#include <cmath>

#include "cpu/kernels.h"
#include "ribsr_cpu.h"
#include "shared/checks.h"

using namespace ribsr;

namespace {

// Instruction sets

const char *const kNames[] = {"auto", "baseline", "avx2", "avx512", "avx512_bf16"};

#ifdef __x86_64__
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

// The kernels of a set that this build and this CPU have, else null.
const Kernels *kernels_of(int32_t isa) {
  switch (isa) {
    case RIBSR_ISA_BASELINE: return &baseline::kernels;
#ifdef __x86_64__
    case RIBSR_ISA_AVX2: return has_avx2() ? &avx2::kernels : nullptr;
    case RIBSR_ISA_AVX512: return has_avx512() ? &avx512::kernels : nullptr;
    case RIBSR_ISA_AVX512_BF16: return has_avx512_bf16() ? &avx512_bf16::kernels : nullptr;
#endif
    default: return nullptr;
  }
}

int32_t best() {
  int32_t isa = RIBSR_ISA_AVX512_BF16;
  while (kernels_of(isa) == nullptr) --isa;
  return isa;
}

// The executor as kernels get it, and which ones; null: one thread, the best set.
int32_t resolve(const void *stream, RibsrExecutor *executor, const Kernels **kernels) {
  *executor = {};
  executor->struct_size = sizeof(RibsrExecutor);
  executor->threads = 1;
  if (const auto *given = static_cast<const RibsrExecutor *>(stream); given != nullptr) {
    const int32_t code = check_struct(given, "executor");
    if (code != RIBSR_OK) return code;
    *executor = *given;
  }
  RibsrExecutor &e = *executor;
  RIBSR_CHECK(e.isa >= RIBSR_ISA_AUTO && e.isa <= RIBSR_ISA_AVX512_BF16, "isa %d is unknown: use 0 to 4", e.isa);
  RIBSR_CHECK(e.bfloat16_products == 0 || e.bfloat16_products == 1, "bfloat16_products is %d: it must be 0 or 1",
              e.bfloat16_products);
  RIBSR_CHECK(e.threads > 0, "threads is %d: it must be positive", e.threads);
  if (e.parallel == nullptr) e.threads = 1;
  if (e.isa == RIBSR_ISA_AUTO) {
    e.isa = best();
    if (e.bfloat16_products != 0 && e.isa != RIBSR_ISA_AVX512_BF16) {
      return fail(RIBSR_UNSUPPORTED, "this CPU has no AVX512_BF16, the instructions for products of bfloat16");
    }
  }
  *kernels = kernels_of(e.isa);
  if (*kernels == nullptr) return fail(RIBSR_UNSUPPORTED, "this CPU, or this build, lacks %s", kNames[e.isa]);
  return RIBSR_OK;
}

// Checks, beside those of checks.h

int32_t check_map(const RibsrMap &map, const char *name) {
  RIBSR_CHECK(map.channel_stride == 1, "%s has channel stride %lld: it must be channels-last, with 1", name,
              static_cast<long long>(map.channel_stride));
  return RIBSR_OK;
}

int32_t check(const RibsrAttentionParams &p) {
  RIBSR_CHECK(p.heads > 0 && p.head_width > 0 && p.rank > 0, "heads, head_width, rank are %d, %d, %d: all must be positive",
              p.heads, p.head_width, p.rank);
  RIBSR_CHECK(p.window_height >= 2 && p.window_height <= 128 && p.window_width >= 2 && p.window_width <= 128,
              "the window is %d x %d: each side must be 2 to 128", p.window_height, p.window_width);
  RIBSR_CHECK(p.scale > 0.0f, "scale is %g: it must be positive", static_cast<double>(p.scale));
  RIBSR_CHECK(p.gate_sigmoid == 0 || p.gate_sigmoid == 1, "gate_sigmoid is %d: it must be 0 or 1", p.gate_sigmoid);
  RIBSR_CHECK(p.qkv.data && p.gate.data && p.out.data && p.rib_q && p.rib_k, "an array is null");
  RIBSR_CHECK(p.out.data != p.qkv.data, "qkv and out are the same memory: they must not overlap");
  int32_t code = check_map(p.qkv, "qkv");
  if (code == RIBSR_OK) code = check_map(p.gate, "gate");
  return code == RIBSR_OK ? check_map(p.out, "out") : code;
}

int32_t check_epsilon(float epsilon) {
  RIBSR_CHECK(epsilon >= 0.0f, "epsilon is %g: it must not be negative", static_cast<double>(epsilon));
  return RIBSR_OK;
}

// What those have in common that make `out` of `in`, pixel by pixel or of neighbours.
template <class Params>
int32_t check_in_out(const Params &p, bool apart) {
  RIBSR_CHECK(p.channels > 0, "channels is %d: it must be positive", p.channels);
  RIBSR_CHECK(p.in.data && p.out.data, "an array is null");
  RIBSR_CHECK(!apart || p.in.data != p.out.data, "in and out are the same memory: they must not overlap");
  const int32_t code = check_map(p.in, "in");
  return code == RIBSR_OK ? check_map(p.out, "out") : code;
}

int32_t check(const RibsrLayerNormParams &p) {
  RIBSR_CHECK(p.weight && p.bias, "an array is null");
  const int32_t code = check_epsilon(p.epsilon);
  return code == RIBSR_OK ? check_in_out(p, false) : code;
}

int32_t check(const RibsrDepthwiseParams &p) {
  RIBSR_CHECK(p.epilogue == RIBSR_EPILOGUE_NONE || p.epilogue == RIBSR_EPILOGUE_ADD_GELU,
              "epilogue %d is unknown: use 0 or 1", p.epilogue);
  RIBSR_CHECK(p.input_gelu == 0 || p.input_gelu == 1, "input_gelu is %d: it must be 0 or 1", p.input_gelu);
  RIBSR_CHECK(p.weight && p.bias, "an array is null");
  return check_in_out(p, true);
}

int32_t check(const RibsrFeedForwardParams &p) {
  RIBSR_CHECK(p.hidden > 0, "hidden is %d: it must be positive", p.hidden);
  RIBSR_CHECK(p.norm_weight && p.norm_bias && p.expand_weight && p.expand_bias && p.depthwise_weight &&
                  p.depthwise_bias && p.contract_weight && p.contract_bias,
              "an array is null");
  const int32_t code = check_epsilon(p.epsilon);
  return code == RIBSR_OK ? check_in_out(p, true) : code;
}

int32_t check(const RibsrAttentionInputsParams &p) {
  RIBSR_CHECK(p.channels > 0, "channels is %d: it must be positive", p.channels);
  RIBSR_CHECK(p.in.data && p.qkv.data && p.gate.data && p.norm_weight && p.norm_bias && p.project_weight &&
                  p.project_bias && p.depthwise_weight && p.depthwise_bias && p.mix_weight && p.mix_bias,
              "an array is null");
  RIBSR_CHECK(p.in.data != p.qkv.data && p.in.data != p.gate.data && p.qkv.data != p.gate.data,
              "two of in, qkv and gate are the same memory: they must not overlap");
  int32_t code = check_epsilon(p.epsilon);
  if (code == RIBSR_OK) code = check_map(p.in, "in");
  if (code == RIBSR_OK) code = check_map(p.qkv, "qkv");
  return code == RIBSR_OK ? check_map(p.gate, "gate") : code;
}

int32_t check(const RibsrConvolutionParams &p) {
  RIBSR_CHECK(p.outputs > 0, "outputs is %d: it must be positive", p.outputs);
  RIBSR_CHECK(p.kernel == 1 || p.kernel == 3, "kernel is %d: it must be 1 or 3", p.kernel);
  RIBSR_CHECK(std::isfinite(p.negative_slope), "negative_slope is %g: it must be finite",
              static_cast<double>(p.negative_slope));
  RIBSR_CHECK(p.weight && p.bias, "an array is null");
  const int32_t code = check_in_out(p, true);
  return code == RIBSR_OK && p.residual.data != nullptr ? check_map(p.residual, "residual") : code;
}

template <class Params>
int32_t run(const Params *params, const void *stream,
            int32_t (*Kernels::*kernel)(const Params &, const RibsrExecutor &) noexcept) {
  clear_message();
  int32_t code = check_struct(params, "params");
  if (code != RIBSR_OK) return code;
  RIBSR_CHECK(params->dtype == RIBSR_FLOAT32, "dtype %d is not float32 (3)", params->dtype);
  code = check_sizes(*params);
  if (code == RIBSR_OK) code = check(*params);
  RibsrExecutor executor;
  const Kernels *kernels = nullptr;
  if (code == RIBSR_OK) code = resolve(stream, &executor, &kernels);
  if (code != RIBSR_OK) return code;
  code = (kernels->*kernel)(*params, executor);
  return code == RIBSR_OK ? code : fail(code, "out of memory");
}

}  // namespace

extern "C" {

int32_t ribsr_attention(const RibsrAttentionParams *params, void *stream) {
  return run(params, stream, &Kernels::attention);
}

int32_t ribsr_layer_norm(const RibsrLayerNormParams *params, void *stream) {
  return run(params, stream, &Kernels::layer_norm);
}

int32_t ribsr_depthwise(const RibsrDepthwiseParams *params, void *stream) {
  return run(params, stream, &Kernels::depthwise);
}

int32_t ribsr_feed_forward(const RibsrFeedForwardParams *params, void *stream) {
  return run(params, stream, &Kernels::feed_forward);
}

int32_t ribsr_attention_inputs(const RibsrAttentionInputsParams *params, void *stream) {
  return run(params, stream, &Kernels::attention_inputs);
}

int32_t ribsr_convolution(const RibsrConvolutionParams *params, void *stream) {
  return run(params, stream, &Kernels::convolution);
}

int64_t ribsr_feed_forward_workspace(int32_t, int32_t) { return 0; }

int64_t ribsr_attention_inputs_workspace(int32_t) { return 0; }

int32_t ribsr_cpu_isas(void) {
  int32_t isas = 0;
  for (int32_t isa = RIBSR_ISA_BASELINE; isa <= RIBSR_ISA_AVX512_BF16; ++isa) {
    if (kernels_of(isa) != nullptr) isas |= 1 << isa;
  }
  return isas;
}

const char *ribsr_error_message(void) { return message; }

int32_t ribsr_interface_version(void) { return RIBSR_INTERFACE_VERSION; }

}  // extern "C"
