// What the functions of the C interface say, and what all of them check; for GPUs and CPUs.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>

#include "ribsr_kernels.h"

namespace ribsr {

inline thread_local char message[512];

// Keep the message for ribsr_error_message; returns `code`.
[[gnu::format(printf, 2, 3)]] inline int32_t fail(int32_t code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  return code;
}

inline void clear_message() { message[0] = '\0'; }

#define RIBSR_CHECK(condition, ...)                                               \
  do {                                                                            \
    if (!(condition)) return ribsr::fail(RIBSR_INVALID_ARGUMENT, __VA_ARGS__);    \
  } while (0)

// Whether a structure of a caller is the one that is known here.
template <class Struct>
int32_t check_struct(const Struct *given, const char *name) {
  RIBSR_CHECK(given != nullptr, "%s is null", name);
  RIBSR_CHECK(given->struct_size == sizeof(Struct),
              "struct_size is %u, this library expects %zu: rebuild the caller against its header", given->struct_size,
              sizeof(Struct));
  return RIBSR_OK;
}

// The sizes that every structure of parameters has.
template <class Params>
int32_t check_sizes(const Params &p) {
  RIBSR_CHECK(p.batch > 0 && p.height > 0 && p.width > 0, "batch, height, width are %d, %d, %d: all must be positive",
              p.batch, p.height, p.width);
  RIBSR_CHECK(p.height <= (1 << 20) && p.width <= (1 << 20), "height, width are %d, %d: at most 2^20", p.height,
              p.width);
  return RIBSR_OK;
}

}  // namespace ribsr
