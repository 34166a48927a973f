/* ribsr's kernels for CPUs: the functions of ribsr_kernels.h in a library of their own, libribsr_cpu.so, in float32.
 *
 * What that header says of structures, shapes and strides holds here, but for these:
 * - dtype is RIBSR_FLOAT32, data is in main memory, and no alignment is asked for; maps have channel stride 1.
 * - The argument `stream` is a const RibsrExecutor *, and a call returns when its work is done.
 * - Every width is taken, and `path` and workspaces are not used: what memory a task needs for itself, its thread keeps.
 *   There is no ribsr_attention_path.
 * - RIBSR_UNSUPPORTED: there is no such instruction set, or no memory for a task.
 */
#ifndef RIBSR_CPU_H
#define RIBSR_CPU_H

#include "ribsr_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { RIBSR_FLOAT32 = 3 };

/* Instruction sets. A call that asks for one that this CPU, or this build, lacks returns RIBSR_UNSUPPORTED. So does one
 * for bfloat16_products by RIBSR_ISA_AUTO without AVX512_BF16; the other sets round factors in software, which is slow. */
enum {
  RIBSR_ISA_AUTO = 0,     /* the best there is */
  RIBSR_ISA_BASELINE = 1, /* what the compiler takes as given */
  RIBSR_ISA_AVX2 = 2,     /* x86-64-v3: AVX2 and FMA */
  RIBSR_ISA_AVX512 = 3,   /* x86-64-v4 */
  RIBSR_ISA_AVX512_BF16 = 4
};

/* The sets that this CPU and this build have: bit 1 << RIBSR_ISA_AVX2, and so on. */
RIBSR_API int32_t ribsr_cpu_isas(void);

/* How a call runs. */
typedef struct {
  uint32_t struct_size;      /* sizeof(RibsrExecutor) */
  int32_t isa;
  int32_t bfloat16_products; /* 1: factors of matrix products are rounded to bfloat16, sums are in float32; else 0 */
  int32_t threads;           /* how many tasks `parallel` runs at a time; for choosing how finely work is cut */
  /* Runs task(data, i) for every i below count, on any threads and in any order, and returns when all are done. Null: one
   * after another on the calling thread. */
  void (*parallel)(void *pool, void (*task)(void *data, int64_t index), int64_t count, void *data);
  void *pool; /* the first argument of `parallel` */
} RibsrExecutor;

#ifdef __cplusplus
}
#endif

#endif
