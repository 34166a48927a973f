// The attention of one window and head after another, for CPUs.
//
// The lanes of a vector are queries, all the way: a block of queries is transposed once, a number of a key or a value is
// broadcast against it, and maxima, sums and probabilities are vectors that nothing has to be reduced in. Of a window are
// packed its keys, content and RIB side by side, and its values, once a task. Keys are taken in tiles whose scores stay in
// the first cache; from tile to tile a query keeps its maximum, its sum and its output, as in FlashAttention
// (arXiv 2205.14135). A query's result depends on nothing but its window, however the work is cut.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <type_traits>

#include "shared/cpu.h"
#include "shared/scratch.h"
#include "shared/simd.h"

namespace ribsr::RIBSR_ISA {
namespace {

constexpr int kMostVectors = kRegisters == 32 ? 4 : 2;  // of queries in a block
constexpr int kMostQueries = kMostVectors * kLanes;
constexpr int kKeyStep = 4;                             // keys whose scores are in registers at a time
constexpr int kChannelStep = 4;                         // channels of the output that are
constexpr int kTile = 64;                               // keys; even
constexpr int kMostTokens = 128;                        // along one side of a window
constexpr float kLog2e = 1.44269504f;
constexpr float kLowest = -3e38f;

// What products are of: float, or uint32_t, which is a pair of bfloat16 that are next to each other in the dimension that
// is summed over.
template <class Element>
constexpr int kPack = std::is_same_v<Element, float> ? 1 : 2;

constexpr int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- where pixels are -----------------------------------------------------------------------------------------------

// One side of a window: which rows (or columns) of the picture its tokens show, and which of them are no padding.
struct Side {
  int tokens, inside_count = 0;
  int source[kMostTokens];
  int inside[kMostTokens];

  Side(int window, int tokens, int shift, int size) : tokens(tokens) {
    const int64_t padded = divided_up(size, tokens) * tokens;
    const int last = size - 1, period = std::max(2 * last, 1);
    for (int i = 0; i < tokens; ++i) {
      int64_t place = (static_cast<int64_t>(window) * tokens + i + shift) % padded;
      if (place < 0) place += padded;
      source[i] = last - std::abs(last - static_cast<int>(place % period));
      if (place < size) inside[inside_count++] = i;
    }
  }
};

// A window and head.
struct Unit {
  const RibsrAttentionParams &params;
  int batch, head;
  Side rows, columns;

  int tokens() const { return rows.tokens * columns.tokens; }

  const float *rib(const void *factors, int token) const {
    return static_cast<const float *>(factors) + (int64_t{1} * head * tokens() + token) * params.rank;
  }

  // The head's channels in one part (of qkv: 0, 1, 2) of a pixel.
  float *pixel(const RibsrMap &map, int row, int column, int part = 0) const {
    return static_cast<float *>(map.data) + batch * map.batch_stride + rows.source[row] * map.row_stride +
           columns.source[column] * map.column_stride + (part * params.heads + head) * params.head_width;
  }
};

Unit locate(const RibsrAttentionParams &p, int64_t unit) {
  const int64_t windows_y = divided_up(p.height, p.window_height), windows_x = divided_up(p.width, p.window_width);
  const int64_t window = unit / p.heads, line = window / windows_x;
  return {p, static_cast<int>(line / windows_y), static_cast<int>(unit % p.heads),
          Side(static_cast<int>(line % windows_y), p.window_height, p.shift_y, p.height),
          Side(static_cast<int>(window % windows_x), p.window_width, p.shift_x, p.width)};
}

// ---- packing --------------------------------------------------------------------------------------------------------

inline Vector load_up_to(const float *from, int count) { return count < kLanes ? load(from, count) : load(from); }

// Writes whole vectors, zeros behind the last number.
inline void copy(float *to, const float *from, int count) {
  for (int i = 0; i < count; i += kLanes) store(to + i, load_up_to(from + i, count - i));
}

// ---- products -------------------------------------------------------------------------------------------------------

inline Vector multiply_add(Vector sum, float a, Vector b) { return a * b + sum; }
inline Vector multiply_add(Vector sum, uint32_t a, Pairs b) { return dot(sum, broadcast_pair(a), b); }

// sum[r][v] += left[r * row_stride + k * step] * right[k][v] over all k below depth.
template <int kRows, int kVectors, class Element>
[[gnu::always_inline]] inline void multiply(Vector (&sum)[kRows][kVectors], const Element *left, ptrdiff_t row_stride,
                                            ptrdiff_t step, const Element *right, int depth) {
  for (int k = 0; k < depth; ++k) {
    decltype(load(right)) b[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) b[v] = load(right + (k * kVectors + v) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add(sum[r][v], left[r * row_stride + k * step], b[v]);
    }
  }
}

// ---- a task ---------------------------------------------------------------------------------------------------------

// A thread's memory, and the steps of the attention in it. Where an array is written in whole vectors they may reach
// behind its end, into what is written later or is spare.
template <class Element>
class Worker {
 public:
  explicit Worker(const RibsrAttentionParams &p)
      : d_(p.head_width),
        rank_(p.rank),
        tokens_(p.window_height * p.window_width),
        width_(static_cast<int>(divided_up(d_ + rank_, kPack<Element>))),
        value_width_(static_cast<int>(divided_up(d_, kChannelStep)) * kChannelStep) {
    const size_t keys = aligned(size_t{1} * tokens_ * width_ + kLanes);
    const size_t values = aligned(divided_up(tokens_, kPack<Element>) * value_width_ + kLanes);
    const size_t queries = size_t{1} * (width_ + kLanes) * kMostQueries;
    const size_t scores = size_t{1} * std::max(kTile, kPack<Element> * width_ + kLanes) * kMostQueries;
    const size_t out = size_t{1} * value_width_ * kMostQueries;
    float *memory = scratch(keys + values + queries + scores + out);
    if (memory == nullptr) return;
    keys_ = reinterpret_cast<Element *>(memory);
    values_ = keys_ + keys;
    queries_ = values_ + values;
    scores_ = memory + keys + values + queries;
    out_ = scores_ + scores;
  }

  bool has_memory() const { return keys_ != nullptr; }

  // The part-th of `parts` of a unit's queries.
  void run(const Unit &unit, int part, int parts) {
    const int count = unit.rows.inside_count * unit.columns.inside_count;
    const int64_t blocks = divided_up(count, kMostQueries);
    const int begin = static_cast<int>(blocks * part / parts) * kMostQueries;
    const int end = std::min(count, static_cast<int>(blocks * (part + 1) / parts) * kMostQueries);
    if (begin < end) pack(unit);
    for (int first = begin; first < end; first += kMostQueries) {
      const int queries = std::min(kMostQueries, end - first);
      switch (divided_up(queries, kLanes)) {
        case 1:
          block<1>(unit, first, queries);
          break;
        case 2:
          block<2>(unit, first, queries);
          break;
        case 3:
          block<std::min(3, kMostVectors)>(unit, first, queries);
          break;
        default:
          block<kMostVectors>(unit, first, queries);
      }
    }
  }

 private:
  static size_t aligned(size_t floats) { return divided_up(floats, 16) * 16; }

  void pack(const Unit &unit) {
    Element *key = keys_, *value = values_;
    const float *even = nullptr;  // the last value of an even token
    int token = 0;
    for (int y = 0; y < unit.rows.tokens; ++y) {
      for (int x = 0; x < unit.columns.tokens; ++x, ++token) {
        pack_key(key, unit.pixel(unit.params.qkv, y, x, 1), unit.rib(unit.params.rib_k, token));
        key += width_;
        const float *channels = unit.pixel(unit.params.qkv, y, x, 2);
        if constexpr (kPack<Element> == 1) {
          copy(value, channels, d_);
          value += value_width_;
        } else if (token % 2 == 1) {
          pack_values(value, even, channels);
          value += value_width_;
        } else {
          even = channels;
        }
      }
    }
    if constexpr (kPack<Element> == 2)
      if (token % 2 == 1) pack_values(value, even, nullptr);
  }

  void pack_key(float *key, const float *content, const float *rib) {
    copy(key, content, d_);
    copy(key + d_, rib, rank_);
  }

  void pack_key(uint32_t *key, const float *content, const float *rib) {
    copy(scores_, content, d_);
    copy(scores_ + d_, rib, rank_);
    store(scores_ + d_ + rank_, Vector{});
    for (int i = 0; i < width_; i += kLanes) store(key + i, load_pairs(scores_ + 2 * i));
  }

  // Of two tokens; the second may be null.
  void pack_values(uint32_t *value, const float *first, const float *second) {
    for (int i = 0; i < d_; i += kLanes) {
      const Vector other = second == nullptr ? Vector{} : load_up_to(second + i, d_ - i);
      store(value + i, pairs(load_up_to(first + i, d_ - i), other));
    }
  }

  // Queries `first` to first + queries of those inside the picture.
  template <int kVectors>
  void block(const Unit &unit, int first, int queries) {
    int row[kMostQueries], column[kMostQueries];
    for (int i = 0; i < queries; ++i) {
      row[i] = unit.rows.inside[(first + i) / unit.columns.inside_count];
      column[i] = unit.columns.inside[(first + i) % unit.columns.inside_count];
    }
    gather<kVectors>(unit, row, column, queries);
    std::fill_n(highest_, kVectors, broadcast(kLowest));
    std::fill_n(total_, kVectors, Vector{});
    std::fill_n(out_, value_width_ * kVectors * kLanes, 0.0f);
    for (int key = 0; key < tokens_; key += kTile) {
      const int keys = std::min(kTile, tokens_ - key);
      Vector before[kVectors];
      std::copy_n(highest_, kVectors, before);
      score<kVectors>(keys_ + int64_t{1} * key * width_, keys);
      exponentiate<kVectors>(before, keys);
      accumulate<kVectors>(values_ + int64_t{1} * (key / kPack<Element>)*value_width_, keys);
    }
    write<kVectors>(unit, row, column, queries);
  }

  // to[c][query] = source[query][c] * factor for all c below width, and whatever up to a multiple of kLanes.
  template <int kVectors>
  static void transpose_rows(float *to, const float *const *source, int width, int queries, float factor) {
    for (int v = 0; v < kVectors; ++v) {
      for (int c = 0; c < width; c += kLanes) {
        Vector rows[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const int query = v * kLanes + i;
          rows[i] = query < queries ? load_up_to(source[query] + c, width - c) : Vector{};
        }
        transpose(rows);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + ((c + i) * kVectors + v) * kLanes, rows[i] * factor);
      }
    }
  }

  template <int kVectors>
  void gather(const Unit &unit, const int *row, const int *column, int queries) {
    const RibsrAttentionParams &p = unit.params;
    const float *content[kMostQueries], *rib[kMostQueries];
    for (int i = 0; i < queries; ++i) {
      content[i] = unit.pixel(p.qkv, row[i], column[i]);
      rib[i] = unit.rib(p.rib_q, row[i] * unit.columns.tokens + column[i]);
    }
    constexpr int stride = kVectors * kLanes;
    float *to = scores_;
    if constexpr (kPack<Element> == 1) to = queries_;
    transpose_rows<kVectors>(to, content, d_, queries, p.scale * kLog2e);
    transpose_rows<kVectors>(to + d_ * stride, rib, rank_, queries, p.scale * kLog2e);
    if constexpr (kPack<Element> == 2) {
      if ((d_ + rank_) % 2) std::fill_n(to + (d_ + rank_) * stride, stride, 0.0f);
      for (int k = 0; k < width_; ++k)
        for (int v = 0; v < stride; v += kLanes)
          store(queries_ + k * stride + v, pairs(load(to + 2 * k * stride + v), load(to + (2 * k + 1) * stride + v)));
    }
  }

  template <int kKeys, int kVectors>
  void score_step(const Element *keys, float *scores) {
    Vector sum[kKeys][kVectors] = {};
    multiply(sum, keys, width_, 1, queries_, width_);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Vector highest = highest_[v];
#pragma GCC unroll 8
      for (int r = 0; r < kKeys; ++r) {
        highest = maximum(sum[r][v], highest);
        store(scores + (r * kVectors + v) * kLanes, sum[r][v]);
      }
      highest_[v] = highest;
    }
  }

  template <int kVectors>
  void score(const Element *keys, int count) {
    int key = 0;
    for (; key + kKeyStep <= count; key += kKeyStep)
      score_step<kKeyStep, kVectors>(keys + key * width_, scores_ + key * kVectors * kLanes);
    for (; key < count; ++key) score_step<1, kVectors>(keys + key * width_, scores_ + key * kVectors * kLanes);
  }

  // Scores to probabilities, not yet divided by their sum.
  template <int kVectors>
  void exponentiate(const Vector *before, int keys) {
    constexpr int stride = kVectors * kLanes;
    constexpr int kDegree = kPack<Element> == 1 ? 5 : 3;  // of what is rounded to bfloat16
    Vector highest[kVectors], sum[kVectors] = {};
    std::copy_n(highest_, kVectors, highest);
    for (int key = 0; key < keys; key += kPack<Element>) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const float *from = scores_ + key * stride + v * kLanes;
        const Vector p = exp2_of_nonpositive<kDegree>(load(from) - highest[v]);
        sum[v] += p;
        if constexpr (kPack<Element> == 1) {
          store(scores_ + key * stride + v * kLanes, p);
        } else {
          const Vector next = key + 1 < keys ? exp2_of_nonpositive<kDegree>(load(from + stride) - highest[v]) : Vector{};
          sum[v] += next;
          store(probabilities() + key / 2 * stride + v * kLanes, pairs(p, next));
        }
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      fading_[v] = exp2_of_nonpositive(before[v] - highest[v]);
      total_[v] = total_[v] * fading_[v] + sum[v];
    }
  }

  template <int kVectors>
  void accumulate(const Element *values, int keys) {
    const int depth = static_cast<int>(divided_up(keys, kPack<Element>));
    for (int c = 0; c < value_width_; c += kChannelStep) {
      Vector sum[kChannelStep][kVectors] = {};
      multiply(sum, values + c, 1, value_width_, probabilities(), depth);
#pragma GCC unroll 8
      for (int r = 0; r < kChannelStep; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          float *out = out_ + ((c + r) * kVectors + v) * kLanes;
          store(out, load(out) * fading_[v] + sum[r][v]);
        }
      }
    }
  }

  Element *probabilities() { return reinterpret_cast<Element *>(scores_); }

  template <int kVectors>
  void write(const Unit &unit, const int *row, const int *column, int queries) {
    const RibsrAttentionParams &p = unit.params;
    for (int v = 0; v < kVectors; ++v) {
      const Vector inverse = 1.0f / total_[v];
      for (int c = 0; c < d_; c += kLanes) {
        Vector rows[kLanes];
        const int channels = std::min(kLanes, d_ - c);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
          rows[i] = i < channels ? load(out_ + ((c + i) * kVectors + v) * kLanes) * inverse : Vector{};
        transpose(rows);
        alignas(64) float pixels[kLanes][kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(pixels[i], rows[i]);
        for (int i = 0; i < std::min(kLanes, queries - v * kLanes); ++i) {
          const int y = row[v * kLanes + i], x = column[v * kLanes + i];
          const Vector gate = load_up_to(unit.pixel(p.gate, y, x) + c, channels);
          store(unit.pixel(p.out, y, x) + c, load(pixels[i]) * (p.gate_sigmoid ? logistic(gate) : gate), channels);
        }
      }
    }
  }

  int d_, rank_, tokens_, width_, value_width_;  // width_: of a key, in elements; value_width_: of a value, in zeros at the end
  Element *keys_ = nullptr;  // [tokens][width]
  Element *values_;          // [tokens, in packs][value_width]
  Element *queries_;         // [width][queries]
  float *scores_;            // [kTile][queries], then probabilities as Element
  float *out_;               // [value_width][queries]
  Vector highest_[kMostVectors], total_[kMostVectors], fading_[kMostVectors];
};

template <class Element>
int32_t attend(const RibsrAttentionParams &p, const RibsrExecutor &executor) {
  const int64_t units = divided_up(p.height, p.window_height) * divided_up(p.width, p.window_width) * p.batch * p.heads;
  const int64_t blocks = divided_up(int64_t{1} * p.window_height * p.window_width, kMostQueries);
  const int64_t wanted = executor.threads > 1 ? 8 * executor.threads : 1;  // tasks
  const int64_t parts = std::clamp<int64_t>(divided_up(wanted, units), 1, blocks);
  const int64_t tasks = parts > 1 ? units * parts : std::min(units, 4 * wanted);
  std::atomic<bool> failed{false};
  parallel(executor, tasks, [&](int64_t task) {
    Worker<Element> worker(p);
    if (!worker.has_memory()) {
      failed = true;
    } else if (parts > 1) {
      worker.run(locate(p, task / parts), static_cast<int>(task % parts), static_cast<int>(parts));
    } else {
      for (int64_t unit = units * task / tasks; unit < units * (task + 1) / tasks; ++unit)
        worker.run(locate(p, unit), 0, 1);
    }
  });
  return failed ? RIBSR_UNSUPPORTED : RIBSR_OK;
}

}  // namespace

int32_t attention(const RibsrAttentionParams &params, const RibsrExecutor &executor) noexcept {
  return executor.bfloat16_products ? attend<uint32_t>(params, executor) : attend<float>(params, executor);
}

}  // namespace ribsr::RIBSR_ISA
