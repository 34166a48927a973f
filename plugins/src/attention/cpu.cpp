// The attention of windows that are alike, head by head, for CPUs.
//
// The lanes of a vector are queries, all the way: a block of queries is transposed once, a number of a key or a value is
// broadcast against it, and maxima, sums and probabilities are vectors that nothing has to be reduced in. Keys are taken in
// tiles whose scores stay in the first cache; from tile to tile a query keeps its maximum, its sum and its output, as in
// FlashAttention (arXiv 2205.14135). What RIB adds to a tile of scores is the same in every window: a task takes a group of
// windows and computes it once for all of them, which spares most of 24 in 56 multiplications of head width 16 and rank
// 24. A query's result depends on nothing but its window, however the work is cut.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

#include "shared/cpu.h"
#include "shared/scratch.h"
#include "shared/simd.h"

namespace ribsr::RIBSR_ISA {
namespace {

constexpr int kMostVectors = kRegisters == 32 ? 4 : 2;  // of queries in a block
constexpr int kMostQueries = kMostVectors * kLanes;
constexpr int kKeyStep = 4;               // keys whose scores are in registers at a time
constexpr int kChannelStep = 4;           // channels of the output that are
constexpr int kTile = 64;                 // keys; even
constexpr int kMostTokens = 128;          // along one side of a window
constexpr int kMostWindows = 16;          // of a group
constexpr int64_t kGroupBytes = 4 << 20;  // of a group's keys and values: about what a core has of the last cache
constexpr float kLog2e = 1.44269504f;
constexpr float kLowest = -3e38f;

// ---- windows --------------------------------------------------------------------------------------------------------

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

  bool has_queries_of(const Side &other) const {
    return std::equal(inside, inside + inside_count, other.inside, other.inside + other.inside_count);
  }
};

// The sides of all windows along an axis, those with the same queries together.
std::vector<std::vector<Side>> alike(int size, int tokens, int shift) {
  std::vector<std::vector<Side>> classes;
  for (int window = 0; window < divided_up(size, tokens); ++window) {
    const Side side(window, tokens, shift, size);
    const auto same = std::find_if(classes.begin(), classes.end(),
                                   [&](const auto &sides) { return sides.front().has_queries_of(side); });
    if (same == classes.end()) {
      classes.push_back({side});
    } else {
      same->push_back(side);
    }
  }
  return classes;
}

struct Window {
  int batch;
  const Side *rows, *columns;

  // A head's channels in one part (of qkv: 0, 1, 2) of a pixel.
  float *pixel(const RibsrAttentionParams &p, const RibsrMap &map, int head, int row, int column, int part = 0) const {
    return static_cast<float *>(map.data) + batch * map.batch_stride + rows->source[row] * map.row_stride +
           columns->source[column] * map.column_stride + (int64_t{1} * part * p.heads + head) * p.head_width;
  }
};

// All windows, in groups of the same queries.
struct Plan {
  std::vector<std::vector<Side>> rows, columns;
  std::vector<Window> windows;
  std::vector<size_t> starts;  // of groups, and where the last one ends

  Plan(const RibsrAttentionParams &p, int64_t most)
      : rows(alike(p.height, p.window_height, p.shift_y)), columns(alike(p.width, p.window_width, p.shift_x)) {
    for (const auto &same_rows : rows) {
      for (const auto &same_columns : columns) {
        starts.push_back(windows.size());
        for (int batch = 0; batch < p.batch; ++batch) {
          for (const Side &row : same_rows) {
            for (const Side &column : same_columns) {
              if (static_cast<int64_t>(windows.size() - starts.back()) == most) starts.push_back(windows.size());
              windows.push_back({batch, &row, &column});
            }
          }
        }
      }
    }
    starts.push_back(windows.size());
  }

  int64_t groups() const { return static_cast<int64_t>(starts.size()) - 1; }

  int size(size_t group) const { return static_cast<int>(starts[group + 1] - starts[group]); }

  int largest() const {
    int most = 0;
    for (size_t group = 0; group + 1 < starts.size(); ++group) most = std::max(most, size(group));
    return most;
  }
};

// ---- packing --------------------------------------------------------------------------------------------------------

// Numbers that are next to each other; zeros take the place of what is missing to whole vectors.
inline void copy_row(float *to, const float *from, int count) {
  for (int i = 0; i < count; i += kLanes) store(to + i, load_up_to(from + i, count - i));
}

inline void copy_row(uint32_t *to, const float *from, int count) {
  for (int i = 0; i < count; i += 2 * kLanes) {
    float row[2 * kLanes];
    store(row, load_up_to(from + i, count - i));
    store(row + kLanes, i + kLanes < count ? load_up_to(from + i + kLanes, count - i - kLanes) : Vector{});
    store(to + i / 2, load_pairs(row));
  }
}

  // to[c][query] = source[query][c] * factor for all c below width, and whatever up to a multiple of kLanes.
  template <int kVectors>
  inline void transpose_rows(float *to, const float *const *source, int width, int queries, float factor) {
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

// ---- products -------------------------------------------------------------------------------------------------------

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
      for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add(left[r * row_stride + k * step], b[v], sum[r][v]);
    }
  }
}

template <int kRows, int kVectors>
[[gnu::always_inline]] inline void load_all(Vector (&x)[kRows][kVectors], const float *from) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) x[r][v] = load(from + (r * kVectors + v) * kLanes);
  }
}

template <int kRows, int kVectors>
[[gnu::always_inline]] inline void store_all(float *to, const Vector (&x)[kRows][kVectors]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(to + (r * kVectors + v) * kLanes, x[r][v]);
  }
}

// Calls step(i, how many) for all i below count, of kStep at a time while there are as many, then of one.
template <int kStep, class Step>
[[gnu::always_inline]] inline void in_steps(int count, const Step &step) {
  int i = 0;
  for (; i + kStep <= count; i += kStep) step(i, std::integral_constant<int, kStep>{});
  for (; i < count; ++i) step(i, std::integral_constant<int, 1>{});
}

// ---- a task ---------------------------------------------------------------------------------------------------------

// What a group's windows have each for themselves.
template <class Element>
struct Own {
  Element *keys;           // [tokens][width]
  Element *values;         // [tokens, in packs][value_width]
  Element *queries;        // [width][queries]
  float *out;              // [value_width][queries]
  float *highest, *total;  // [queries]
};

// A thread's memory, and the steps of the attention in it. What has the inner loops is no part of its callers' code, for
// which g++ would have too few registers. Where an array is written in whole vectors they may reach behind its end, into
// what is written later or is spare. Arrays of [queries] are of kVectors * kLanes in a block.
template <class Element>
class Worker {
 public:
  // For groups of up to `windows`. `p` must outlive it.
  Worker(const RibsrAttentionParams &p, int windows)
      : p_(p),
        d_(p.head_width),
        tokens_(p.window_height * p.window_width),
        width_(static_cast<int>(divided_up(d_, kWide<Element>))),
        rib_width_(static_cast<int>(divided_up(p.rank, kWide<Element>))),
        value_width_(static_cast<int>(divided_up(d_, kChannelStep)) * kChannelStep) {
    const size_t keys = aligned(size_t{1} * tokens_ * width_ + kLanes);
    const size_t values = aligned(divided_up(tokens_, kWide<Element>) * value_width_ + kLanes);
    const size_t queries = size_t{1} * (width_ + kLanes) * kMostQueries;
    const size_t out = size_t{1} * value_width_ * kMostQueries;
    const size_t own = keys + values + queries + out + 2 * kMostQueries;
    const size_t rib_keys = aligned(size_t{1} * tokens_ * rib_width_ + kLanes);
    const size_t rib_queries = size_t{1} * (rib_width_ + kLanes) * kMostQueries;
    const size_t rows = kWide<Element> * std::max(width_, rib_width_) + 2 * kLanes;  // that a transposition writes
    const size_t scores = std::max<size_t>(kTile, rows) * kMostQueries;
    float *memory = scratch(own * windows + rib_keys + rib_queries + kTile * kMostQueries + scores);
    has_memory_ = memory != nullptr;
    if (!has_memory_) return;
    for (int i = 0; i < windows; ++i, memory += own) {
      Element *start = reinterpret_cast<Element *>(memory);
      float *floats = memory + keys + values + queries;
      own_[i] = {start, start + keys, start + keys + values, floats, floats + out, floats + out + kMostQueries};
    }
    rib_keys_ = reinterpret_cast<Element *>(memory);
    rib_queries_ = rib_keys_ + rib_keys;
    bias_ = memory + rib_keys + rib_queries;
    scores_ = bias_ + kTile * kMostQueries;
  }

  bool has_memory() const { return has_memory_; }

  // The part-th of `parts` of the queries of some windows and one head.
  void run(const Window *windows, int count, int head, int part, int parts) {
    windows_ = windows;
    count_ = count;
    head_ = head;
    const int inside = windows->rows->inside_count * windows->columns->inside_count;
    const int64_t blocks = divided_up(inside, kMostQueries);
    const int begin = static_cast<int>(blocks * part / parts) * kMostQueries;
    const int end = std::min(inside, static_cast<int>(blocks * (part + 1) / parts) * kMostQueries);
    if (begin < end) pack();
    for (int first = begin; first < end; first += kMostQueries) {
      const int queries = std::min(kMostQueries, end - first);
      switch (divided_up(queries, kLanes)) {
        case 1:
          block<1>(first, queries);
          break;
        case 2:
          block<2>(first, queries);
          break;
        case 3:
          block<std::min(3, kMostVectors)>(first, queries);
          break;
        default:
          block<kMostVectors>(first, queries);
      }
    }
  }

 private:
  static size_t aligned(size_t floats) { return divided_up(floats, 16) * 16; }

  const float *rib(const void *factors, int token) const {
    return static_cast<const float *>(factors) + (int64_t{1} * head_ * tokens_ + token) * p_.rank;
  }

  // Keys and values of all windows, and what RIB has of keys.
  void pack() {
    for (int token = 0; token < tokens_; ++token)
      copy_row(rib_keys_ + int64_t{1} * token * rib_width_, rib(p_.rib_k, token), p_.rank);
    for (int i = 0; i < count_; ++i) {
      const Window &window = windows_[i];
      Element *key = own_[i].keys, *value = own_[i].values;
      const float *even = nullptr;  // the value of the last token of an even number
      int token = 0;
      for (int y = 0; y < p_.window_height; ++y) {
        for (int x = 0; x < p_.window_width; ++x, ++token, key += width_) {
          copy_row(key, window.pixel(p_, p_.qkv, head_, y, x, 1), d_);
          const float *channels = window.pixel(p_, p_.qkv, head_, y, x, 2);
          if constexpr (kWide<Element> == 1) {
            copy_row(value, channels, d_);
            value += value_width_;
          } else if (token % 2 == 1) {
            pair_rows(value, even, channels);
            value += value_width_;
          } else {
            even = channels;
          }
        }
      }
      if constexpr (kWide<Element> == 2)
        if (token % 2 == 1) pair_rows(value, even, nullptr);
    }
  }

  // Values of two tokens; the second may be null.
  void pair_rows(uint32_t *to, const float *first, const float *second) {
    for (int i = 0; i < d_; i += kLanes) {
      const Vector other = second == nullptr ? Vector{} : load_up_to(second + i, d_ - i);
      store(to + i, pairs(load_up_to(first + i, d_ - i), other));
    }
  }

  // Queries `first` to first + queries of those inside the picture.
  template <int kVectors>
  void block(int first, int queries) {
    int row[kMostQueries], column[kMostQueries];
    for (int i = 0; i < queries; ++i) {
      row[i] = windows_->rows->inside[(first + i) / windows_->columns->inside_count];
      column[i] = windows_->columns->inside[(first + i) % windows_->columns->inside_count];
    }
    const float *from[kMostQueries];
    for (int i = 0; i < queries; ++i) from[i] = rib(p_.rib_q, row[i] * p_.window_width + column[i]);
    gather<kVectors>(rib_queries_, from, p_.rank, queries);
    for (int w = 0; w < count_; ++w) {
      for (int i = 0; i < queries; ++i) from[i] = windows_[w].pixel(p_, p_.qkv, head_, row[i], column[i]);
      gather<kVectors>(own_[w].queries, from, d_, queries);
      std::fill_n(own_[w].highest, kVectors * kLanes, kLowest);
      std::fill_n(own_[w].total, kVectors * kLanes, 0.0f);
      std::fill_n(own_[w].out, value_width_ * kVectors * kLanes, 0.0f);
    }
    for (int key = 0; key < tokens_; key += kTile) {
      const int keys = std::min(kTile, tokens_ - key);
      if (count_ > 1) bias<kVectors>(key, keys);
      for (int w = 0; w < count_; ++w) {
        Vector highest[kVectors], fading[kVectors];
        if (count_ > 1) {
          score<true>(own_[w], key, keys, highest);
        } else {
          score<false>(own_[w], key, keys, highest);
        }
        exponentiate<kVectors>(own_[w], keys, highest, fading);
        accumulate<kVectors>(own_[w], key, keys, fading);
      }
    }
    for (int w = 0; w < count_; ++w) write<kVectors>(w, row, column, queries);
  }

  // to[c][query] = from[query][c] * scale for all c below width.
  template <int kVectors>
  void gather(Element *to, const float *const *from, int width, int queries) {
    constexpr int stride = kVectors * kLanes;
    if constexpr (kWide<Element> == 1) {
      transpose_rows<kVectors>(to, from, width, queries, p_.scale * kLog2e);
    } else {
      transpose_rows<kVectors>(scores_, from, width, queries, p_.scale * kLog2e);
      if (width % 2) std::fill_n(scores_ + width * stride, stride, 0.0f);
      for (int c = 0; c < width; c += 2)
        for (int i = 0; i < stride; i += kLanes)
          store(to + c / 2 * stride + i, pairs(load(scores_ + c * stride + i), load(scores_ + (c + 1) * stride + i)));
    }
  }

  // What RIB adds to scores.
  template <int kKeys, int kVectors>
  [[gnu::always_inline]] void add_rib(Vector (&sum)[kKeys][kVectors], int key) {
    multiply(sum, rib_keys_ + int64_t{1} * key * rib_width_, rib_width_, 1, rib_queries_, rib_width_);
  }

  // The same, for several windows.
  template <int kVectors>
  [[gnu::noinline]] void bias(int first, int keys) {
    in_steps<kKeyStep>(keys, [&](int key, auto step) {
      constexpr int kKeys = decltype(step)::value;
      Vector sum[kKeys][kVectors] = {};
      add_rib(sum, first + key);
      store_all(bias_ + key * kVectors * kLanes, sum);
    });
  }

  // Scores, and the highest so far. kShared: `bias` has been computed.
  template <bool kShared, int kVectors>
  [[gnu::noinline]] void score(const Own<Element> &own, int first, int keys, Vector (&highest)[kVectors]) {
    for (int v = 0; v < kVectors; ++v) highest[v] = load(own.highest + v * kLanes);
    in_steps<kKeyStep>(keys, [&](int key, auto step) {
      constexpr int kKeys = decltype(step)::value;
      Vector sum[kKeys][kVectors] = {};
      if constexpr (kShared) {
        load_all(sum, bias_ + key * kVectors * kLanes);
      } else {
        add_rib(sum, first + key);
      }
      multiply(sum, own.keys + int64_t{1} * (first + key) * width_, width_, 1, own.queries, width_);
#pragma GCC unroll 8
      for (int r = 0; r < kKeys; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) highest[v] = maximum(sum[r][v], highest[v]);
      }
      store_all(scores_ + key * kVectors * kLanes, sum);
    });
  }

  // Scores to probabilities, not yet divided by their sum. fading: what earlier ones are to be multiplied by.
  template <int kVectors>
  [[gnu::noinline]] void exponentiate(const Own<Element> &own, int keys, const Vector (&highest)[kVectors],
                                      Vector (&fading)[kVectors]) {
    constexpr int stride = kVectors * kLanes;
    constexpr int kDegree = kWide<Element> == 1 ? 5 : 3;  // of what is rounded to bfloat16
    Vector sum[kVectors] = {};
    for (int key = 0; key < keys; key += kWide<Element>) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const float *from = scores_ + key * stride + v * kLanes;
        const Vector p = exp2_of_nonpositive<kDegree>(load(from) - highest[v]);
        sum[v] += p;
        if constexpr (kWide<Element> == 1) {
          store(scores_ + key * stride + v * kLanes, p);
        } else {
          const Vector next = key + 1 < keys ? exp2_of_nonpositive<kDegree>(load(from + stride) - highest[v]) : Vector{};
          sum[v] += next;
          store(probabilities() + key / 2 * stride + v * kLanes, pairs(p, next));
        }
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      fading[v] = exp2_of_nonpositive(load(own.highest + v * kLanes) - highest[v]);
      store(own.highest + v * kLanes, highest[v]);
      store(own.total + v * kLanes, load(own.total + v * kLanes) * fading[v] + sum[v]);
    }
  }

  template <int kVectors>
  [[gnu::noinline]] void accumulate(const Own<Element> &own, int key, int keys, const Vector (&fading)[kVectors]) {
    const Element *values = own.values + int64_t{1} * (key / kWide<Element>) * value_width_;
    const int depth = static_cast<int>(divided_up(keys, kWide<Element>));
    for (int c = 0; c < value_width_; c += kChannelStep) {
      Vector sum[kChannelStep][kVectors] = {};
      multiply(sum, values + c, 1, value_width_, probabilities(), depth);
#pragma GCC unroll 8
      for (int r = 0; r < kChannelStep; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          float *out = own.out + ((c + r) * kVectors + v) * kLanes;
          store(out, load(out) * fading[v] + sum[r][v]);
        }
      }
    }
  }

  Element *probabilities() { return reinterpret_cast<Element *>(scores_); }

  template <int kVectors>
  void write(int w, const int *row, const int *column, int queries) {
    for (int v = 0; v < kVectors; ++v) {
      const Vector inverse = 1.0f / load(own_[w].total + v * kLanes);
      for (int c = 0; c < d_; c += kLanes) {
        Vector rows[kLanes];
        const int channels = std::min(kLanes, d_ - c);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
          rows[i] = i < channels ? load(own_[w].out + ((c + i) * kVectors + v) * kLanes) * inverse : Vector{};
        transpose(rows);
        float pixels[kLanes][kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(pixels[i], rows[i]);
        for (int i = 0; i < std::min(kLanes, queries - v * kLanes); ++i) {
          const int y = row[v * kLanes + i], x = column[v * kLanes + i];
          const Vector gate = load_up_to(windows_[w].pixel(p_, p_.gate, head_, y, x) + c, channels);
          const Vector factor = p_.gate_sigmoid ? logistic(gate) : gate;
          store(windows_[w].pixel(p_, p_.out, head_, y, x) + c, load(pixels[i]) * factor, channels);
        }
      }
    }
  }

  const RibsrAttentionParams &p_;
  const int d_, tokens_;
  const int width_, rib_width_;  // of a key, in Elements
  const int value_width_;        // of a value, with zeros at the end
  bool has_memory_;
  Own<Element> own_[kMostWindows];
  Element *rib_keys_;        // [tokens][rib_width]
  Element *rib_queries_;     // [rib_width][queries]
  float *bias_;              // [kTile][queries]
  float *scores_;            // [kTile][queries], then probabilities as Elements; before, what packing needs
  const Window *windows_;
  int count_, head_;
};

template <class Element>
int32_t attend(const RibsrAttentionParams &p, const RibsrExecutor &executor) {
  const int64_t tokens = int64_t{1} * p.window_height * p.window_width;
  const int64_t bytes = tokens * p.head_width * 2 * static_cast<int64_t>(sizeof(float)) / kWide<Element>;
  const Plan plan(p, std::clamp<int64_t>(kGroupBytes / bytes, 1, kMostWindows));
  const int largest = plan.largest();
  const int64_t units = plan.groups() * p.heads, wanted = executor.threads > 1 ? 4 * executor.threads : 1;
  const int64_t parts = std::clamp<int64_t>(divided_up(wanted, units), 1, divided_up(tokens, kMostQueries));
  std::atomic<bool> failed{false};
  parallel(executor, units * parts, [&](int64_t task) {
    Worker<Element> worker(p, largest);
    if (!worker.has_memory()) {
      failed = true;
      return;
    }
    const int64_t unit = task / parts, head = unit % p.heads;
    const size_t group = static_cast<size_t>(unit / p.heads);
    worker.run(&plan.windows[plan.starts[group]], plan.size(group), static_cast<int>(head),
               static_cast<int>(task % parts), static_cast<int>(parts));
  });
  return failed ? RIBSR_UNSUPPORTED : RIBSR_OK;
}

}  // namespace

int32_t attention(const RibsrAttentionParams &params, const RibsrExecutor &executor) noexcept {
  try {
    return executor.bfloat16_products ? attend<uint32_t>(params, executor) : attend<float>(params, executor);
  } catch (const std::bad_alloc &) {
    return RIBSR_UNSUPPORTED;
  }
}

}  // namespace ribsr::RIBSR_ISA
