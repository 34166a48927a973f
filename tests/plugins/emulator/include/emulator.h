// A GPU for tests: it runs the kernels' own sources on a CPU, one block after the other.
//
// A block's threads are fibers of one thread of the system. A warp runs until all its lanes wait for the block, then the
// next one does; instructions of a whole warp begin when all its lanes have come to them. Blocks see shared memory full of
// ones, which no kernel may rely on. What a GPU would do in silence ends the process with a line that names it: addresses
// outside shared memory or misaligned ones, barriers that not all threads reach.
//
// $EMULATOR_ORDER: of a block's warps between barriers, 0 forwards, 1 backwards, or shuffled by this seed. Results must not
// depend on it; those of a kernel that lacks a barrier do. $EMULATOR_EARLY=1: cp.async copies at once, else when waited for.
#pragma once

#include <stdint.h>

#include <functional>
#include <vector>

namespace emulator {

struct Index {
  unsigned x, y, z;
  Index(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct Config {  // what stands between <<< and >>>
  Index grid, block;
  size_t bytes;  // of shared memory
  Config(Index grid, Index block, size_t bytes = 0, void * = nullptr) : grid(grid), block(block), bytes(bytes) {}
};

struct Warp {
  std::vector<void *> arguments;  // of the instruction that lanes have come to
  int lanes = 0, arrived = 0;
  unsigned instructions = 0;  // done
};

struct Thread {
  Index index;
  int lane;
  Warp *warp;
};

extern Thread *self;
extern Index block_index, block_size, grid_size;
extern uint8_t *shared_memory;  // of the block
extern long long steps;         // all that threads have waited for and got: a block in which it stays stands still

constexpr uint32_t kSharedBase = 1024;  // the address of its first byte: 0 is none

// Something that a GPU would not say. Ends the process.
[[noreturn]] void die(const char *what, long long value);

// Shared memory at an address, for an access of so many bytes, to which it must be aligned.
uint8_t *shared_at(uint32_t address, int bytes);

// Another fiber runs.
void yield();

// Until all threads of the block are here; or `threads` of them, at a barrier with a number.
void meet(int barrier, int threads);
constexpr int kWholeBlock = -1;

// The same without waiting.
void arrive(int barrier, int threads);

// All lanes come here, each with its argument; the last one computes with those of all, by lane.
template <class Argument, class Compute>
void together(Argument &argument, Compute compute) {
  Warp &warp = *self->warp;
  warp.arguments[self->lane] = &argument;
  if (++warp.arrived == warp.lanes) {
    warp.arrived = 0;
    compute(reinterpret_cast<Argument **>(warp.arguments.data()), warp.lanes);
    ++warp.instructions;
    ++steps;
    return;
  }
  for (const unsigned before = warp.instructions; warp.instructions == before;) yield();
}

// cp.async and its groups, of this thread. valid: else zeros are written.
void copy(uint32_t to, const void *from, int bytes, bool valid);
void copy_commit();
void copy_wait(int pending);

void run(const Config &config, const std::function<void()> &thread);

template <class Kernel, class... Arguments>
void launch(Kernel kernel, const Config &config, Arguments... arguments) {
  run(config, [&] { kernel(arguments...); });
}

// How many 8x8 matrices ldmatrix has loaded, and how many times it had to wait for a bank.
extern long long matrices, conflicts;

}  // namespace emulator
