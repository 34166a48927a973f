// The operators as runtimes see them: attributes, shapes and the calls of the kernels, without a runtime's types. The
// faces in the folders beside this file translate. Nothing here throws.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace ribsr::runtimes {

constexpr const char *kDomain = "ribsr";

// Remember one line for this thread, and give it back: what the last function here that failed found wrong.
[[gnu::format(printf, 1, 2)]] void complain(const char *format, ...) noexcept;
const char *complaint() noexcept;

// How a [B, C, H, W] map lies in memory.
enum class Layout {
  kLinear,        // as its dimensions are ordered
  kChannelsLast,  // pixels, each of C values
  kPadded,        // pixels, each of C values and what is missing to a multiple of 8
};

// A tensor without its memory. A map's dimensions are B, C, H, W in every layout; unknown ones are -1.
struct Tensor {
  int32_t rank;
  int64_t dims[8];
  int32_t dtype;  // RIBSR_FLOAT16 or RIBSR_BFLOAT16
  Layout layout;
};

enum class Kind { kInt32, kFloat32 };

// An attribute of a node: its name, and where its values are in the operator, 4 bytes each.
struct Attribute {
  const char *name;
  const void *values;
  Kind kind;
  int32_t length;
};

// A dimension of an operator's input.
struct Dimension {
  int32_t input, axis;
};

// Each operator is the values of its node's attributes, and:
//   name       the node's op_type
//   maps       for each input whether it is a [B, C, H, W] map; the others are constants. Outputs are maps, too
//   linear     whether the maps may be kLinear, not channels-last only
//   optional   the input that may be missing, whose Tensor has rank 0 then; -1 if there is none
//   like       the input whose dimensions the outputs have, but for their channels; their type is that of every input
//   outputs    of each output, which dimension of which input its channels are
//   attributes where their values are
//   valid      whether the values are ones the kernel takes
//   fits       whether the inputs' shapes go together
//   has_workspace  whether run ever needs device memory besides its inputs and outputs
//   workspace  how many bytes of it, for inputs that fit
//   run        enqueues the kernel on a cudaStream_t; a status of ribsr_kernels.h
// valid and fits complain of what is wrong.

// What most operators are like.
struct Usual {
  static constexpr int32_t optional = -1;
  static constexpr bool has_workspace = false;

  size_t workspace(const Tensor *) const noexcept { return 0; }
};

struct CyclicWindowAttention : Usual {
  static constexpr const char *name = "CyclicWindowAttention";
  static constexpr std::array maps{true, false, false, true};  // qkv, rib_q, rib_k, gate
  static constexpr bool linear = true;
  static constexpr int32_t like = 3;
  static constexpr std::array outputs{Dimension{3, 1}};

  int32_t window[2];
  int32_t heads;
  int32_t shift[2];
  float scale;
  int32_t gate_sigmoid;

  std::array<Attribute, 5> attributes() const noexcept;
  bool valid() const noexcept;
  bool fits(const Tensor *in) const noexcept;
  int32_t run(const Tensor *in, const void *const *inputs, void *const *results, void *workspace,
              void *stream) const noexcept;
};

// What operators have in which a layer norm is: its attribute.
struct Normalising : Usual {
  float epsilon;

  std::array<Attribute, 1> attributes() const noexcept;

 protected:
  bool valid_as(const char *name) const noexcept;
};

struct ChannelLayerNorm : Normalising {
  static constexpr const char *name = "ChannelLayerNorm";
  static constexpr std::array maps{true, false, false};  // x, weight, bias
  static constexpr bool linear = true;
  static constexpr int32_t like = 0;
  static constexpr std::array outputs{Dimension{0, 1}};

  bool valid() const noexcept { return valid_as(name); }
  bool fits(const Tensor *in) const noexcept;
  int32_t run(const Tensor *in, const void *const *inputs, void *const *results, void *workspace,
              void *stream) const noexcept;
};

struct DepthwiseConv3x3 : Usual {
  static constexpr const char *name = "DepthwiseConv3x3";
  static constexpr std::array maps{true, false, false};  // x, weight, bias
  static constexpr bool linear = true;
  static constexpr int32_t like = 0;
  static constexpr std::array outputs{Dimension{0, 1}};

  int32_t add_gelu;
  int32_t input_gelu;

  std::array<Attribute, 2> attributes() const noexcept;
  bool valid() const noexcept;
  bool fits(const Tensor *in) const noexcept;
  int32_t run(const Tensor *in, const void *const *inputs, void *const *results, void *workspace,
              void *stream) const noexcept;
};

struct FeedForward : Normalising {
  static constexpr const char *name = "FeedForward";
  // x, then weight and bias of norm, expand, depthwise and contract
  static constexpr std::array maps{true, false, false, false, false, false, false, false, false};
  static constexpr bool linear = false;
  static constexpr int32_t like = 0;
  static constexpr std::array outputs{Dimension{0, 1}};
  static constexpr bool has_workspace = true;

  bool valid() const noexcept { return valid_as(name); }
  bool fits(const Tensor *in) const noexcept;
  size_t workspace(const Tensor *in) const noexcept;
  int32_t run(const Tensor *in, const void *const *inputs, void *const *results, void *workspace,
              void *stream) const noexcept;
};

struct AttentionInputs : Normalising {
  static constexpr const char *name = "AttentionInputs";
  // x, then weight and bias of norm, project, depthwise and mix
  static constexpr std::array maps{true, false, false, false, false, false, false, false, false};
  static constexpr bool linear = false;
  static constexpr int32_t like = 0;
  static constexpr std::array outputs{Dimension{3, 0}, Dimension{7, 0}};  // qkv, gate: as the weights say
  static constexpr bool has_workspace = true;

  bool valid() const noexcept { return valid_as(name); }
  bool fits(const Tensor *in) const noexcept;
  size_t workspace(const Tensor *in) const noexcept;
  int32_t run(const Tensor *in, const void *const *inputs, void *const *results, void *workspace,
              void *stream) const noexcept;
};

struct Convolution : Usual {
  static constexpr const char *name = "Convolution";
  static constexpr std::array maps{true, true, false, false};  // x, residual, weight, bias
  static constexpr bool linear = false;
  static constexpr int32_t like = 0;
  static constexpr std::array outputs{Dimension{2, 0}};
  static constexpr int32_t optional = 1;

  float negative_slope;

  std::array<Attribute, 1> attributes() const noexcept;
  bool valid() const noexcept;
  bool fits(const Tensor *in) const noexcept;
  int32_t run(const Tensor *in, const void *const *inputs, void *const *results, void *workspace,
              void *stream) const noexcept;
};

template <class... Operators>
struct List {};

// What each runtime has.
using Every = List<CyclicWindowAttention, ChannelLayerNorm, DepthwiseConv3x3, FeedForward, AttentionInputs, Convolution>;
using TensorRTs = List<CyclicWindowAttention, ChannelLayerNorm, DepthwiseConv3x3, FeedForward, AttentionInputs>;

template <class Operator>
constexpr int32_t kInputs = static_cast<int32_t>(Operator::maps.size());
template <class Operator>
constexpr int32_t kOutputs = static_cast<int32_t>(Operator::outputs.size());

// Enqueues the kernel, if the inputs fit; false after complaining, also for what the kernel's launcher refuses.
bool succeeded(const char *name, int32_t status) noexcept;

template <class Operator>
bool enqueue(const Operator &made, const Tensor *in, const void *const *inputs, void *const *outputs, void *workspace,
             void *stream) noexcept {
  return made.fits(in) && succeeded(Operator::name, made.run(in, inputs, outputs, workspace, stream));
}

}  // namespace ribsr::runtimes
