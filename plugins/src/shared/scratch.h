// Memory of the CPU's kernels: what the tasks of a call share, and what a thread's tasks work in.
#pragma once

#include <cstddef>
#include <new>

namespace ribsr::RIBSR_ISA {

// So many floats, aligned to 64 bytes, their contents unknown. `data` is null if there is no memory.
struct Memory {
  explicit Memory(size_t floats) noexcept
      : data(static_cast<float *>(operator new(floats * sizeof(float), std::align_val_t{64}, std::nothrow))) {}
  ~Memory() { operator delete(data, std::align_val_t{64}); }
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;

  float *const data;
};

// Memory of the calling thread for so many floats, aligned to 64 bytes, its contents unknown; null if there is none to
// have. It is kept between calls, grows to the most that a task asked for, and goes when the thread ends. The next call on
// the same thread may take it away: a task calls this once and cuts what it gets, and what tasks share is a Memory.
inline float *scratch(size_t floats) noexcept {
  struct Buffer {
    Memory *memory = nullptr;
    size_t floats = 0;
    ~Buffer() { delete memory; }
  };
  static thread_local Buffer buffer;
  if (floats > buffer.floats) {
    delete buffer.memory;
    buffer.memory = new (std::nothrow) Memory(floats);
    buffer.floats = buffer.memory != nullptr && buffer.memory->data != nullptr ? floats : 0;
  }
  return buffer.floats == 0 ? nullptr : buffer.memory->data;
}

}  // namespace ribsr::RIBSR_ISA
