#include "runtimes/tensorrt/common.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "ribsr_kernels.h"

namespace ribsr::tensorrt {

using nvinfer1::DataType;
using nvinfer1::TensorFormat;

static std::atomic<nvinfer1::ILoggerFinder *> logger_finder{nullptr};

void set_logger_finder(nvinfer1::ILoggerFinder *finder) noexcept { logger_finder = finder; }

#define RIBSR_TEXT_(value) #value
#define RIBSR_TEXT(value) RIBSR_TEXT_(value)

// The finder knows the logger of the engine that calls. Outside engines, as when a network is parsed, there is the one
// of the process, asked for without linking with TensorRT.
static nvinfer1::ILogger *find_logger() noexcept {
  nvinfer1::ILogger *logger = nullptr;
  try {
    if (nvinfer1::ILoggerFinder *finder = logger_finder) logger = finder->findLogger();
  } catch (...) {  // TensorRT's own code, not declared noexcept
  }
  if (logger != nullptr) return logger;
  void *library = dlopen("libnvinfer.so." RIBSR_TEXT(NV_TENSORRT_MAJOR), RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  const auto get_logger = reinterpret_cast<decltype(&getLogger)>(dlsym(library, "getLogger"));
  dlclose(library);
  return get_logger != nullptr ? get_logger() : nullptr;
}

void report(const char *format, ...) noexcept {
  char line[768] = "ribsr: ";
  const size_t prefix = strlen(line);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line + prefix, sizeof(line) - prefix, format, arguments);
  va_end(arguments);
  if (nvinfer1::ILogger *logger = find_logger()) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, line);
  } else {
    fprintf(stderr, "%s\n", line);
  }
}

bool reported(bool succeeded) noexcept {
  if (!succeeded) report("%s", complaint());
  return succeeded;
}

// Attributes

static_assert(sizeof(int32_t) == 4 && sizeof(float) == 4, "every attribute's values are 4 bytes each");

static bool read_field(const char *name, const PluginField &given, const PluginField &wanted) noexcept {
  auto *values = static_cast<int32_t *>(const_cast<void *>(wanted.data));
  if (given.data != nullptr && given.length == wanted.length) {
    if (given.type == wanted.type) {
      memcpy(values, given.data, static_cast<size_t>(wanted.length) * 4);
      return true;
    }
#if NV_TENSORRT_MAJOR >= 10
    // The parsers to 10.1 pass ONNX integers as int32, but they are int64 in the file and in Python.
    if (given.type == PluginFieldType::kINT64 && wanted.type == PluginFieldType::kINT32) {
      for (int32_t index = 0; index < wanted.length; ++index) {
        int64_t value;
        memcpy(&value, static_cast<const char *>(given.data) + index * sizeof(value), sizeof(value));
        if (value != static_cast<int32_t>(value)) {
          report("%s: attribute %s is %lld, more than 32 bits", name, wanted.name, static_cast<long long>(value));
          return false;
        }
        values[index] = static_cast<int32_t>(value);
      }
      return true;
    }
#endif
  }
  report("%s: attribute %s must be %d %s, but is %d values of plugin field type %d", name, wanted.name, wanted.length,
         wanted.type == PluginFieldType::kINT32 ? "int32" : "float32", given.length, static_cast<int>(given.type));
  return false;
}

bool read_fields(const char *name, const PluginFieldCollection *given, const PluginField *wanted,
                 size_t count) noexcept {
  const int32_t fields = given != nullptr && given->fields != nullptr ? given->nbFields : 0;
  for (size_t index = 0; index < count; ++index) {
    const PluginField *found = nullptr;
    for (int32_t field = 0; field < fields && found == nullptr; ++field) {
      const PluginField &candidate = given->fields[field];
      if (candidate.name != nullptr && strcmp(candidate.name, wanted[index].name) == 0) found = &candidate;
    }
    if (found == nullptr) {
      report("%s: attribute %s is missing", name, wanted[index].name);
      return false;
    }
    if (!read_field(name, *found, wanted[index])) return false;
  }
  return true;
}

// Shapes and formats

bool supports(bool is_map, bool linear, const PluginTensorDesc &first, const PluginTensorDesc &tensor) noexcept {
#if NV_TENSORRT_MAJOR >= 10
  const bool half = first.type == DataType::kHALF || first.type == DataType::kBF16;
#else
  const bool half = first.type == DataType::kHALF;
#endif
  const bool layout = first.format == TensorFormat::kHWC8 || (linear && first.format == TensorFormat::kLINEAR);
  return half && layout && tensor.type == first.type &&
         tensor.format == (is_map ? first.format : TensorFormat::kLINEAR);
}

bool output_shape(const char *name, int32_t count, int32_t wanted, int32_t like, Dimension channels,
                  const DimsExprs *inputs, DimsExprs *output) noexcept {
  if (count != wanted) {
    report("%s: has %d inputs instead of %d", name, count, wanted);
    return false;
  }
  for (const int32_t index : {like, channels.input}) {
    if (inputs[index].nbDims == 4) continue;
    report("%s: input %d has %d dimensions instead of 4", name, index, inputs[index].nbDims);
    return false;
  }
  *output = inputs[like];
  output->d[1] = inputs[channels.input].d[channels.axis];
  return true;
}

Tensor tensor(const PluginTensorDesc &described) noexcept {
  Tensor made{};
  made.rank = described.dims.nbDims;
  for (int32_t index = 0; index < made.rank; ++index) made.dims[index] = described.dims.d[index];
  made.dtype = described.type == DataType::kHALF ? RIBSR_FLOAT16 : RIBSR_BFLOAT16;
  made.layout = described.format == TensorFormat::kHWC8 ? Layout::kPadded : Layout::kLinear;
  return made;
}

}  // namespace ribsr::tensorrt
