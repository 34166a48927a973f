// The memory that a thread's tasks work in. It is kept between calls, grows to the most that a task asked for, and goes
// when the thread ends.
#pragma once

#include <cstddef>
#include <new>

namespace ribsr::RIBSR_ISA {

// Memory of the calling thread for so many floats, aligned to 64 bytes, its contents unknown; null if there is none to
// have. The next call on the same thread may take it away, so a task calls this once and cuts what it gets.
inline float *scratch(size_t floats) noexcept {
  constexpr std::align_val_t kLine{64};
  struct Buffer {
    void *data = nullptr;
    size_t floats = 0;
    ~Buffer() { operator delete(data, kLine); }
  };
  static thread_local Buffer buffer;
  if (floats > buffer.floats) {
    operator delete(buffer.data, kLine);
    buffer.floats = 0;
    buffer.data = operator new(floats * sizeof(float), kLine, std::nothrow);
    if (buffer.data == nullptr) return nullptr;
    buffer.floats = floats;
  }
  return static_cast<float *>(buffer.data);
}

}  // namespace ribsr::RIBSR_ISA
