#include "attention/launch.cuh"

cudaError_t ribsr::launch_hopper_fp16(const Shape &shape, int multiprocessors, cudaStream_t stream) {
  return launch_hopper<false>(shape, multiprocessors, stream);
}
