/* ribsr's kernels for NVIDIA GPUs: the C interface of the shared library.
 *
 * ribsr_attention: ribsr::CyclicWindowAttention. ribsr_layer_norm and ribsr_depthwise: what the layers around it need and
 * runtimes do slowly on channels-last maps. ribsr_feed_forward and ribsr_attention_inputs: the second half of a layer
 * around these two, and what of the first comes before the attention. ribsr_convolution: the dense convolutions between
 * layers. The library needs the CUDA driver and nothing else; every call is asynchronous on `stream` (a cudaStream_t) of
 * the current device, allocates nothing and may be captured in a CUDA graph.
 */
#ifndef RIBSR_KERNELS_H
#define RIBSR_KERNELS_H

#include <stdint.h>

#if defined(__GNUC__)
#define RIBSR_API __attribute__((visibility("default")))
#else
#define RIBSR_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What the functions that take `params` return; ribsr_error_message() says it in words. */
enum {
  RIBSR_OK = 0,
  RIBSR_INVALID_ARGUMENT = 1, /* a parameter is outside what the operator allows */
  RIBSR_UNSUPPORTED = 2,      /* the device, or the forced path, cannot run it */
  RIBSR_CUDA_ERROR = 3        /* the CUDA runtime refused; the message carries its text */
};

enum { RIBSR_FLOAT16 = 1, RIBSR_BFLOAT16 = 2 };

enum {
  RIBSR_PATH_AUTO = 0,     /* the fastest that fits the device, the widths and the layout */
  RIBSR_PATH_PORTABLE = 1, /* mma.sync, compute capability 8.0 and later */
  RIBSR_PATH_HOPPER = 2    /* wgmma, compute capability 9.0; of attention channels-last, D in {16, 32}, R in {16, 24, 32};
                            * of the others the widths of sst-l */
};

/* A [batch, channel, height, width] map in device memory; strides in elements.
 * NHWC with a pixel stride of P channels: channel 1, column P, row W P. NCHW: column 1, row W, channel H W.
 * The vectorised loads need channel stride 1, every other stride a multiple of 8 and data aligned to 16 bytes. */
typedef struct {
  void *data;
  int64_t batch_stride, channel_stride, row_stride, column_stride;
} RibsrMap;

typedef struct {
  uint32_t struct_size; /* sizeof(RibsrAttentionParams), so that a caller built against another version is refused */
  int32_t dtype;        /* of all five arrays */
  int32_t path;
  int32_t batch, height, width;
  int32_t heads, head_width, rank; /* head_width and rank: 1 to 64 */
  int32_t window_height, window_width; /* 2 to 128 */
  int32_t shift_y, shift_x;            /* the map is rolled by minus this */
  int32_t gate_sigmoid;                /* 1: the logistic function of gate takes the place of gate; else 0 */
  float scale;                         /* above 0; multiplies the float32 scores */
  RibsrMap qkv;      /* 3 * heads * head_width channels, ordered (q|k|v, head, head_width) */
  RibsrMap gate;     /* heads * head_width channels */
  RibsrMap out;      /* heads * head_width channels */
  const void *rib_q; /* [heads, window_height * window_width, rank], contiguous */
  const void *rib_k;
} RibsrAttentionParams;

/* out = gate * softmax(scale * (q k^T + rib_q rib_k^T)) v, per window and head, where the map is reflect-padded right and
 * bottom to multiples of the window and rolled by -shift first, and rolled back and cropped afterwards. Nothing of that is
 * done as data movement. */
RIBSR_API int32_t ribsr_attention(const RibsrAttentionParams *params, void *stream);

/* Write to `path` which path ribsr_attention would take on the current device. */
RIBSR_API int32_t ribsr_attention_path(const RibsrAttentionParams *params, int32_t *path);

/* ribsr_layer_norm and ribsr_depthwise, from channels-last to channels-last: where `channels` is no multiple of 8 and the
 * pixel stride of `out` is the next one, the lanes between are set to zero. Otherwise nothing but `out` is written. */

typedef struct {
  uint32_t struct_size; /* sizeof(RibsrLayerNormParams) */
  int32_t dtype;        /* of all four arrays */
  int32_t batch, channels, height, width;
  float epsilon;
  RibsrMap in, out;
  const void *weight; /* [channels], contiguous */
  const void *bias;
} RibsrLayerNormParams;

/* Layer normalisation over the channels of every pixel: (x - mean) / sqrt(variance + epsilon) * weight + bias, the
 * statistics in float32. */
RIBSR_API int32_t ribsr_layer_norm(const RibsrLayerNormParams *params, void *stream);

enum {
  RIBSR_EPILOGUE_NONE = 0,
  RIBSR_EPILOGUE_ADD_GELU = 1 /* out = in + gelu(convolution), gelu by the error function */
};

typedef struct {
  uint32_t struct_size; /* sizeof(RibsrDepthwiseParams) */
  int32_t dtype;        /* of all four arrays */
  int32_t input_gelu;   /* 1: gelu(in) takes the place of in, wherever it stands below */
  int32_t epilogue;
  int32_t batch, channels, height, width;
  RibsrMap in, out;   /* must not overlap */
  const void *weight; /* [channels, 3, 3], contiguous */
  const void *bias;   /* [channels] */
} RibsrDepthwiseParams;

/* Depthwise 3x3 convolution, padded with one zero on every side, accumulated in float32. In float16, for channels-last maps
 * of whole vectors, gelu is an approximation in float16, off by up to 2.7e-4 besides rounding; else by 4.5e-5. */
RIBSR_API int32_t ribsr_depthwise(const RibsrDepthwiseParams *params, void *stream);

typedef struct {
  uint32_t struct_size; /* sizeof(RibsrFeedForwardParams) */
  int32_t dtype;        /* of all ten arrays */
  int32_t path;
  int32_t batch, channels, hidden, height, width;
  float epsilon;
  RibsrMap in, out;             /* must not overlap */
  const void *norm_weight;      /* [channels] */
  const void *norm_bias;        /* [channels] */
  const void *expand_weight;    /* [hidden, channels], contiguous; of narrow layers aligned to 16 bytes */
  const void *expand_bias;      /* [hidden] */
  const void *depthwise_weight; /* [hidden, 3, 3], contiguous */
  const void *depthwise_bias;   /* [hidden] */
  const void *contract_weight;  /* [channels, hidden], likewise */
  const void *contract_bias;    /* [channels] */
  void *workspace;              /* ribsr_feed_forward_workspace's bytes, aligned to 16; may be null if that is 0 */
} RibsrFeedForwardParams;

/* out = in + contract(u + gelu(depthwise(u))) with u = gelu(expand(norm(in))): `norm` and `depthwise` as above, `expand`
 * and `contract` 1x1 convolutions. In 16 bits are what goes into a product: the deviations from a pixel's mean, the
 * weights of `expand` times those of `norm`, u, and u + gelu(...); in float16 gelu, too. All else is float32. (On Hopper's
 * path x itself is what goes into the first product.) For channels and hidden of multiples of 8 up to 64 and 96, and maps
 * that the vectorised loads take; for 180 and 225, 192 and 384, 224 and 448, and channels-last maps with strides of
 * multiples of 4, aligned to 8 bytes; else RIBSR_UNSUPPORTED. Where 180 channels are 184 apart in `out`, the lanes between
 * are set to zero. Hopper's path is for 192 and 384, the vectorised loads, and weights aligned to 16 bytes. */
RIBSR_API int32_t ribsr_feed_forward(const RibsrFeedForwardParams *params, void *stream);

/* How many bytes of device memory ribsr_feed_forward needs as its workspace, apart from all arrays; 0 also for widths that
 * it does not support, on whatever device. What is in it need not outlive a call, but calls that run at the same time need
 * one each. */
RIBSR_API int64_t ribsr_feed_forward_workspace(int32_t channels, int32_t hidden);

typedef struct {
  uint32_t struct_size; /* sizeof(RibsrAttentionInputsParams) */
  int32_t dtype;        /* of all eleven arrays */
  int32_t path;
  int32_t batch, channels, height, width;
  float epsilon;
  RibsrMap in, qkv, gate;       /* of channels, 3 * channels and channels; must not overlap */
  const void *norm_weight;      /* [channels] */
  const void *norm_bias;        /* [channels] */
  const void *project_weight;   /* [3 * channels, channels], contiguous, aligned to 16 bytes */
  const void *project_bias;     /* [3 * channels] */
  const void *depthwise_weight; /* [channels, 3, 3], contiguous */
  const void *depthwise_bias;   /* [channels] */
  const void *mix_weight;       /* [channels, channels], contiguous, aligned to 16 bytes */
  const void *mix_bias;         /* [channels] */
  void *workspace;              /* as ribsr_feed_forward's, of ribsr_attention_inputs_workspace's bytes */
} RibsrAttentionInputsParams;

/* qkv = project(n) and gate = mix(depthwise(n)) with n = norm(in): `norm` and `depthwise` as above, without gelu, `project`
 * and `mix` 1x1 convolutions. The gate's logistic function is left to ribsr_attention. In 16 bits are norm's and
 * depthwise's results; all else is float32. For channels of multiples of 8 up to 64, 192 and 224, and maps that the
 * vectorised loads take, else RIBSR_UNSUPPORTED. Hopper's path is for 192. */
RIBSR_API int32_t ribsr_attention_inputs(const RibsrAttentionInputsParams *params, void *stream);

/* How many bytes of device memory ribsr_attention_inputs needs as its workspace; as ribsr_feed_forward_workspace. */
RIBSR_API int64_t ribsr_attention_inputs_workspace(int32_t channels);

typedef struct {
  uint32_t struct_size; /* sizeof(RibsrConvolutionParams) */
  int32_t dtype;        /* of all five arrays */
  int32_t batch, channels, outputs, kernel, height, width;
  float negative_slope;       /* multiplies what is negative before residual is added: 1 leaves it, 0.1 is LeakyReLU */
  RibsrMap in, residual, out; /* residual.data may be null: nothing is added. out may be residual's memory, but not in's */
  const void *weight;         /* [outputs, kernel, kernel, channels], contiguous, aligned to 16 bytes */
  const void *bias;           /* [outputs] */
} RibsrConvolutionParams;

/* out = leaky(convolution(in) + bias) + residual, a dense convolution of kernel 1 or 3, padded with zeros to the same
 * size. Products are of 16-bit numbers; all else is float32, and rounded once. For channels of multiples of 8 up to 256,
 * outputs up to 512, `in` a map that the vectorised loads take, residual and out with channel stride 1, else
 * RIBSR_UNSUPPORTED. Nothing but `out` is written. */
RIBSR_API int32_t ribsr_convolution(const RibsrConvolutionParams *params, void *stream);

/* The calling thread's last error, one line; empty when there was none. */
RIBSR_API const char *ribsr_error_message(void);

/* The interface's version: changes when the structures or meanings above change. */
enum { RIBSR_INTERFACE_VERSION = 8 };
RIBSR_API int32_t ribsr_interface_version(void);

/* What the library was compiled for, as nvcc has it: "sm_80+sm_90a+compute_80", machine code and PTX. */
RIBSR_API const char *ribsr_gpu_code(void);

#ifdef __cplusplus
}
#endif

#endif
