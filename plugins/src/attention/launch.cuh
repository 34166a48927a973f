// From run-time widths to template arguments.
#pragma once

#include "attention/hopper.cuh"
#include "attention/launch.h"
#include "attention/portable.cuh"

namespace ribsr {

// Launch with `bytes` of dynamic shared memory, which above 48 KiB a kernel must be allowed first.
template <class Kernel>
cudaError_t launch(Kernel *kernel, int blocks, int threads, int bytes, const Shape &shape, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<blocks, threads, bytes, stream>>>(shape);
  return cudaGetLastError();
}

template <int D, int R, bool BF16>
cudaError_t launch_portable_as(Shape shape, cudaStream_t stream) {
  using namespace portable;
  shape.vectorised = shape.vectorised && shape.rank % 8 == 0 && reinterpret_cast<uintptr_t>(shape.rib_q) % 16 == 0 &&
                     reinterpret_cast<uintptr_t>(shape.rib_k) % 16 == 0;
  const int warps = (shape.tokens + kRows - 1) / kRows;  // of a unit
  shape.query_blocks = (warps + kWarps - 1) / kWarps;
  const int block_warps = (warps + shape.query_blocks - 1) / shape.query_blocks;
  return launch(attention<D, R, BF16>, shape.units * shape.query_blocks, 32 * block_warps,
                Layout<D, R>::bytes(shape.tokens), shape, stream);
}

template <int D, bool BF16>
cudaError_t launch_portable_width(const Shape &shape, cudaStream_t stream) {
  if (shape.rank <= 16) return launch_portable_as<D, 16, BF16>(shape, stream);
  if (shape.rank <= 24) return launch_portable_as<D, 24, BF16>(shape, stream);
  if (shape.rank <= 32) return launch_portable_as<D, 32, BF16>(shape, stream);
  return launch_portable_as<D, 64, BF16>(shape, stream);
}

template <bool BF16>
cudaError_t launch_portable(const Shape &shape, cudaStream_t stream) {
  if (shape.head_width <= 16) return launch_portable_width<16, BF16>(shape, stream);
  if (shape.head_width <= 32) return launch_portable_width<32, BF16>(shape, stream);
  return launch_portable_width<64, BF16>(shape, stream);
}

template <int D, int R, bool Shared, bool BF16>
cudaError_t launch_hopper_as(Shape shape, int multiprocessors, cudaStream_t stream) {
  using L = hopper::Layout<D, R, Shared>;
  shape.query_blocks = (shape.tokens + L::kItemRows - 1) / L::kItemRows;
  shape.items = Shared ? shape.units * shape.query_blocks : (shape.units + hopper::kConsumers - 1) / hopper::kConsumers;
  const int blocks = shape.items < multiprocessors ? shape.items : multiprocessors;
  return launch(hopper::attention<D, R, Shared, BF16>, blocks, hopper::kThreads, L::kBytes, shape, stream);
}

template <int D, int R, bool BF16>
cudaError_t launch_hopper_mode(const Shape &shape, int multiprocessors, cudaStream_t stream) {
  return shape.tokens > hopper::kKeys ? launch_hopper_as<D, R, true, BF16>(shape, multiprocessors, stream)
                                      : launch_hopper_as<D, R, false, BF16>(shape, multiprocessors, stream);
}

template <int D, bool BF16>
cudaError_t launch_hopper_rank(const Shape &shape, int multiprocessors, cudaStream_t stream) {
  if (shape.rank == 16) return launch_hopper_mode<D, 16, BF16>(shape, multiprocessors, stream);
  if (shape.rank == 24) return launch_hopper_mode<D, 24, BF16>(shape, multiprocessors, stream);
  return launch_hopper_mode<D, 32, BF16>(shape, multiprocessors, stream);
}

template <bool BF16>
cudaError_t launch_hopper(const Shape &shape, int multiprocessors, cudaStream_t stream) {
  return shape.head_width == 16 ? launch_hopper_rank<16, BF16>(shape, multiprocessors, stream)
                                : launch_hopper_rank<32, BF16>(shape, multiprocessors, stream);
}

}  // namespace ribsr
