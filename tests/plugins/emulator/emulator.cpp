#include "emulator.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>

namespace emulator {

Thread *self;
Index block_index, block_size, grid_size;
uint8_t *shared_memory;
long long steps, matrices, conflicts;

namespace {

constexpr int kStack = 128 * 1024, kMostShared = 256 * 1024;

struct Copy {
  uint32_t to;
  const void *from;
  int bytes;
  bool valid;
};

// Where a fiber, or the scheduler, goes on. swapcontext would ask the system for the signal mask each time.
struct Place {
  ucontext_t context;  // where it begins
  jmp_buf jump;
  bool begun = false;
};

void go(Place &from, Place &to) {
  if (_setjmp(from.jump) != 0) return;
  if (to.begun) _longjmp(to.jump, 1);
  to.begun = true;
  setcontext(&to.context);
}

struct Fiber : Thread {
  int number;  // in the block
  Place place;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false, waiting = false;
  int barrier = 0, threads = 0;           // that it waits at, and for how many
  std::vector<Copy> open;                 // copies since the last commit
  std::vector<std::vector<Copy>> groups;  // that have been committed
};

std::vector<std::unique_ptr<Fiber>> fibers;
const std::function<void()> *body;
Place scheduler;
size_t shared_bytes;
std::map<int, int> arrived;  // by barrier: threads that have not waited
bool early;  // whether cp.async copies at once

int setting(const char *name) {
  const char *value = getenv(name);
  return value == nullptr ? 0 : atoi(value);
}

Fiber &current() { return *static_cast<Fiber *>(self); }

bool can_run(const Fiber &fiber) { return !fiber.done && !fiber.waiting; }

// The lane after this one in its warp that can run; perhaps itself.
Fiber *next_of(const Fiber &fiber) {
  const int lanes = fiber.warp->lanes;
  for (int i = 1; i <= lanes; ++i) {
    Fiber &next = *fibers[fiber.number - fiber.lane + (fiber.lane + i) % lanes];
    if (can_run(next)) return &next;
  }
  return nullptr;
}

void perform(const Copy &copy) {
  uint8_t *to = shared_at(copy.to, copy.bytes);
  if (copy.valid) {
    memcpy(to, copy.from, copy.bytes);
  } else {
    memset(to, 0, copy.bytes);
  }
}

void enter() {
  (*body)();
  copy_wait(0);
  current().done = true;
  ++steps;
  for (;;) yield();
}

void start(const Config &config, std::vector<Warp> &warps) {
  const int threads = config.block.x * config.block.y * config.block.z;
  warps.assign((threads + 31) / 32, Warp{});
  fibers.clear();
  for (int i = 0; i < threads; ++i) {
    fibers.push_back(std::make_unique<Fiber>());
    Fiber &fiber = *fibers.back();
    fiber.index = Index(i % config.block.x, i / config.block.x % config.block.y, i / (config.block.x * config.block.y));
    fiber.number = i;
    fiber.lane = i % 32;
    fiber.warp = &warps[i / 32];
    fiber.warp->arguments.resize(++fiber.warp->lanes);
    ucontext_t &context = fiber.place.context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
  }
}

// Lets threads go on whose barrier all have reached. A barrier of the block does not wait for threads that have ended.
void open_barriers() {
  for (const auto &fiber : fibers) {
    if (!fiber->waiting) continue;
    int here = arrived[fiber->barrier], alive = 0;
    for (const auto &other : fibers) {
      here += other->waiting && other->barrier == fiber->barrier;
      alive += !other->done;
    }
    if (here < (fiber->barrier == kWholeBlock ? alive : fiber->threads)) continue;
    const int barrier = fiber->barrier;
    arrived[barrier] = 0;
    for (const auto &other : fibers) {
      if (other->waiting && other->barrier == barrier) other->waiting = false;
    }
    ++steps;
  }
}

void run_block(const Config &config, int order, std::mt19937 &random) {
  std::vector<Warp> warps;
  start(config, warps);
  memset(shared_memory, 0xff, config.bytes);
  std::vector<int> turns(warps.size());
  for (size_t i = 0; i < turns.size(); ++i) turns[i] = order == 1 ? turns.size() - 1 - i : i;
  while (!std::all_of(fibers.begin(), fibers.end(), [](const auto &fiber) { return fiber->done; })) {
    if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
    const long long before = steps;
    for (const int turn : turns) {
      Fiber *first = next_of(*fibers[32 * turn + warps[turn].lanes - 1]);
      if (first == nullptr) continue;
      self = first;
      go(scheduler, first->place);
    }
    open_barriers();
    if (steps == before) die("threads wait for ever for others of their block or warp, barrier", fibers[0]->barrier);
  }
}

}  // namespace

void die(const char *what, long long value) {
  fprintf(stderr, "emulator: %s: %lld; block %u %u %u, thread %u\n", what, value, block_index.x, block_index.y,
          block_index.z, self == nullptr ? 0 : self->index.x);
  abort();
}

uint8_t *shared_at(uint32_t address, int bytes) {
  const long long offset = static_cast<long long>(address) - kSharedBase;
  if (address % bytes != 0) die("misaligned address in shared memory", offset);
  if (offset < 0 || offset + bytes > static_cast<long long>(shared_bytes)) die("outside shared memory", offset);
  return shared_memory + offset;
}

void yield() {
  constexpr int kPatience = 1 << 16;  // lanes of a warp that wait for others of it, which wait for the block
  static int turns;
  Fiber &fiber = current();
  Fiber *next = ++turns % kPatience == 0 ? nullptr : next_of(fiber);
  if (next == &fiber) return;
  self = next;
  go(fiber.place, next == nullptr ? scheduler : next->place);
}

void meet(int barrier, int threads) {
  Fiber &fiber = current();
  fiber.waiting = true;
  fiber.barrier = barrier;
  fiber.threads = threads;
  ++steps;
  yield();
}

void arrive(int barrier, int threads) {
  if (++arrived[barrier] >= threads) die("nobody waits at barrier", barrier);
  ++steps;
}

void copy(uint32_t to, const void *from, int bytes, bool valid) {
  shared_at(to, bytes);
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) die("misaligned source of cp.async", bytes);
  const Copy made = {to, from, bytes, valid};
  if (early) {
    perform(made);
  } else {
    current().open.push_back(made);
  }
}

void copy_commit() {
  current().groups.push_back({});
  current().groups.back().swap(current().open);
}

void copy_wait(int pending) {
  auto &groups = current().groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const Copy &copy : groups.front()) perform(copy);
    groups.erase(groups.begin());
  }
}

void run(const Config &config, const std::function<void()> &thread) {
  static const std::unique_ptr<uint8_t[]> memory(new (std::align_val_t(1024)) uint8_t[kMostShared]);
  const int order = setting("EMULATOR_ORDER");
  std::mt19937 random(order);
  early = setting("EMULATOR_EARLY") != 0;
  body = &thread;
  scheduler.begun = true;
  grid_size = config.grid;
  block_size = config.block;
  shared_memory = memory.get();
  shared_bytes = config.bytes;
  for (block_index.z = 0; block_index.z < grid_size.z; ++block_index.z) {
    for (block_index.y = 0; block_index.y < grid_size.y; ++block_index.y) {
      for (block_index.x = 0; block_index.x < grid_size.x; ++block_index.x) run_block(config, order, random);
    }
  }
  self = nullptr;
}

}  // namespace emulator

extern "C" long long emulator_matrices() { return emulator::matrices; }
extern "C" long long emulator_conflicts() { return emulator::conflicts; }
