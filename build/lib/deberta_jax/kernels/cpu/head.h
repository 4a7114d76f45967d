// Attention of one head of one item: content, c2p and p2c scores by blocks of queries, and the
// gradients of all of them.
//
// Both relative terms depend on the distance i - j alone. Relative rows are laid out by distance,
// so that a tile of kTile tokens needs one product with a window of them, whose row t then belongs
// kTile - 1 - t places further to the left: adding it to the scores is a shift, not a gather.
// Distances of `reach` and more share one row on either side; there a term is one number a query
// (c2p) or a key (p2c), so that long sequences pay for relative position only near the diagonal.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace deberta {

constexpr int64_t kTile = 64;       // tokens that share a window of relative rows
constexpr int64_t kBlock = 256;     // queries whose scores are in memory at a time
constexpr float kHidden = -std::numeric_limits<float>::infinity();

inline int64_t Ceil(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }
inline int64_t Floor(int64_t x, int64_t unit) { return x / unit * unit; }

struct Sizes {
  int64_t batch, length, heads, size, rows, reach;
  bool c2p, p2c, causal;
  float scale, rate;

  int64_t padded() const { return Ceil(length, kTile); }
  int64_t width() const { return Ceil(size, kPad); }               // of a padded head
  int64_t half() const { return std::min(reach + kTile + kPad, padded()); }
  int64_t window_rows() const { return Ceil(2 * half() + 1 + kTile + kPad, kPad); }
  int64_t block() const { return std::min(padded(), kBlock); }
  // Rows of scores start in different cache sets.
  int64_t score_row() const { return padded() + kPad / 2; }
  int64_t skewed_row() const { return Ceil(std::min(padded(), 2 * half()) + kTile, kPad) + kPad / 2; }
};

// Relative rows of one head by distance: c2p's descend with the index, p2c's ascend.
struct Relative {
  std::vector<float> rows, transposed;  // [window_rows, width], [width, window_row + pad]
  int64_t transposed_row;

  void Pack(const Sizes& s, const float* table, const int32_t* distance_rows, int64_t head,
            bool descending, float scale) {
    const int64_t width = s.width(), half = s.half();
    transposed_row = s.window_rows() + kPad / 2;
    rows.assign(s.window_rows() * width, 0);
    transposed.assign(width * transposed_row, 0);
    for (int64_t place = 0; place <= 2 * half; ++place) {
      const float* from = table + Row(s, distance_rows, place, descending) * s.heads * s.size +
                          head * s.size;
      for (int64_t d = 0; d < s.size; ++d) {
        rows[place * width + d] = transposed[d * transposed_row + place] = scale * from[d];
      }
    }
  }

  // Adds gradients by distance to those of the table's rows.
  static void Unpack(const Sizes& s, const std::vector<float>& gradients,
                     const int32_t* distance_rows, bool descending, float scale, float* table) {
    for (int64_t place = 0; place <= 2 * s.half(); ++place) {
      float* to = table + Row(s, distance_rows, place, descending) * s.size;
      const float* from = gradients.data() + place * s.width();
      for (int64_t d = 0; d < s.size; ++d) to[d] += scale * from[d];
    }
  }

  const float* edge(const Sizes& s, bool first) const {
    return rows.data() + (first ? 0 : 2 * s.half() * s.width());
  }

 private:
  static int64_t Row(const Sizes& s, const int32_t* distance_rows, int64_t place, bool descending) {
    const int64_t distance = descending ? s.half() - place : place - s.half();
    return distance_rows[std::clamp<int64_t>(distance, 1 - s.length, s.length - 1) + s.length - 1];
  }
};

// The tokens near a tile, out of those from `begin` to `end`; all others are beyond reach.
struct Near {
  int64_t first, last, columns;  // columns: of the window, a multiple of kPad

  Near(const Sizes& s, int64_t tile, int64_t begin, int64_t end) {
    first = std::clamp(Floor(std::max<int64_t>(0, tile - s.reach), kPad), begin, end);
    last = std::clamp(Ceil(tile + kTile + s.reach, kPad), first, end);
    columns = Ceil(last - first + kTile - 1, kPad);
  }
  bool empty() const { return first == last; }
};

// The bits that drop a probability: as in `kernels/xla_dropout.py`.
struct Dropout {
  uint32_t first, second, threshold;

  static Words Mix(Words x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
  }
  Floats Keep(Floats x, int64_t query, int64_t key) const {
    const Words place = (Words)(Lanes() + (int32_t)key) + ((uint32_t)query << 16);
    const Words bits = Mix(Mix(place ^ first) + second);
    return bits >= threshold ? x : Floats{};
  }
};

class Head {
 public:
  Head(const Sizes& sizes, const Relative& c2p, const Relative& p2c)
      : s(sizes), c2p_(c2p), p2c_(p2c) {
    const int64_t packed = s.padded() * s.width(), scores = s.block() * s.score_row();
    for (auto* x : {&query_, &key_, &value_}) x->assign(packed, 0);
    for (auto* x : {&key_transposed_, &value_transposed_}) x->assign(s.width() * s.score_row(), 0);
    scores_.resize(scores);
    skewed_.resize(kTile * s.skewed_row());
    hidden_.assign(s.padded(), kHidden);
    key_edges_.assign(2 * s.padded(), 0);
  }

  // Gradients by distance, over all items that this object has seen.
  std::vector<float> c2p_gradient, p2c_gradient;

  // Pointers are to the item's and head's first number; tokens are `stride` numbers apart.
  void Forward(const float* query, const float* key, const float* value, int64_t stride,
               const int32_t* query_segments, const int32_t* key_segments, const Dropout& dropout,
               float* out, float* log_sums) {
    PackItem(query, key, value, stride);
    std::vector<float> result(s.block() * s.width());
    for (int64_t start = 0; start < s.padded(); start += s.block()) {
      const int64_t count = std::min(s.block(), s.padded() - start);
      Scores(start, count, query_segments, key_segments);
      for (int64_t i = 0; i < count && start + i < s.length; ++i) {
        float* row = scores_.data() + i * s.score_row();
        const float log_sum = Softmax(row, start + i, dropout);
        log_sums[start + i] = log_sum;
      }
      Multiply(count, s.width(), s.padded(), {scores_.data(), s.score_row(), 1}, value_.data(),
               s.width(), result.data(), s.width(), false);
      CopyOut(result.data(), start, count, 1, out, stride);
    }
  }

  void Backward(const float* query, const float* key, const float* value, int64_t stride,
                const int32_t* query_segments, const int32_t* key_segments, const Dropout& dropout,
                const float* out, const float* log_sums, const float* out_gradient,
                float* query_gradient, float* key_gradient, float* value_gradient) {
    const int64_t width = s.width(), padded = s.padded();
    PackItem(query, key, value, stride);
    Transpose(value_, value_transposed_);
    for (auto* x : {&c2p_gradient, &p2c_gradient}) x->resize(s.window_rows() * width, 0);
    dkey_.assign(padded * width, 0);
    dvalue_.assign(padded * width, 0);
    dkey_edges_.assign(2 * padded, 0);
    dscores_.resize(s.block() * s.score_row());
    std::vector<float> dout(s.block() * width), dquery(s.block() * width);
    for (int64_t start = 0; start < padded; start += s.block()) {
      const int64_t count = std::min(s.block(), padded - start);
      std::fill(dout.begin(), dout.end(), 0);
      for (int64_t i = 0; i < count && start + i < s.length; ++i) {
        std::copy_n(out_gradient + (start + i) * stride, s.size, dout.data() + i * width);
      }
      Scores(start, count, query_segments, key_segments);
      Multiply(count, padded, width, {dout.data(), width, 1}, value_transposed_.data(),
               s.score_row(), dscores_.data(), s.score_row(), false);
      for (int64_t i = 0; i < count; ++i) {
        float delta = 0;
        const bool inside = start + i < s.length;
        for (int64_t d = 0; inside && d < s.size; ++d) {
          delta += dout[i * width + d] * out[(start + i) * stride + d];
        }
        DifferentiateSoftmax(i, start + i, inside ? log_sums[start + i] : 0, delta, dropout);
      }
      const Left down = {scores_.data(), 1, s.score_row()};
      const Left gradient_down = {dscores_.data(), 1, s.score_row()};
      const float* block_query = query_.data() + start * width;
      Multiply(padded, width, count, down, dout.data(), width, dvalue_.data(), width, true);
      Multiply(count, width, padded, {dscores_.data(), s.score_row(), 1}, key_.data(), width,
               dquery.data(), width, false);
      Multiply(padded, width, count, gradient_down, block_query, width, dkey_.data(), width, true);
      if (s.c2p) DifferentiateC2p(start, count, dquery.data());
      if (s.p2c) DifferentiateP2c(start, count);
      CopyOut(dquery.data(), start, count, s.scale, query_gradient, stride);
    }
    if (s.p2c) DifferentiateKeyEdges();
    CopyOut(dkey_.data(), 0, padded, 1, key_gradient, stride);
    CopyOut(dvalue_.data(), 0, padded, 1, value_gradient, stride);
  }

 private:
  void PackItem(const float* query, const float* key, const float* value, int64_t stride) {
    for (int64_t i = 0; i < s.length; ++i) {
      for (int64_t d = 0; d < s.size; ++d) {
        query_[i * s.width() + d] = s.scale * query[i * stride + d];
        key_[i * s.width() + d] = key[i * stride + d];
        value_[i * s.width() + d] = value[i * stride + d];
      }
    }
    Transpose(key_, key_transposed_);
    if (s.p2c && s.padded() > s.reach) {
      for (int64_t j = 0; j < s.padded(); ++j) {
        key_edges_[j] = Dot(key_.data() + j * s.width(), p2c_.edge(s, true));
        key_edges_[s.padded() + j] = Dot(key_.data() + j * s.width(), p2c_.edge(s, false));
      }
    }
  }

  void Transpose(const std::vector<float>& from, std::vector<float>& to) const {
    for (int64_t i = 0; i < s.length; ++i) {
      for (int64_t d = 0; d < s.size; ++d) to[d * s.score_row() + i] = from[i * s.width() + d];
    }
  }

  float Dot(const float* x, const float* y) const {
    Floats sum = {};
    for (int64_t d = 0; d < s.width(); d += kWidth) sum += Load(x + d) * Load(y + d);
    return Sum(sum);
  }

  void CopyOut(const float* from, int64_t start, int64_t count, float scale, float* to,
               int64_t stride) const {
    for (int64_t i = 0; i < count && start + i < s.length; ++i) {
      for (int64_t d = 0; d < s.size; ++d) {
        to[(start + i) * stride + d] = scale * from[i * s.width() + d];
      }
    }
  }

  // Scaled scores of the queries from `start` on; -inf where a query does not see a key.
  void Scores(int64_t start, int64_t count, const int32_t* query_segments,
              const int32_t* key_segments) {
    const float* query = query_.data() + start * s.width();
    Multiply(count, s.padded(), s.width(), {query, s.width(), 1}, key_transposed_.data(),
             s.score_row(), scores_.data(), s.score_row(), false);
    if (s.c2p) AddC2p(start, count);
    if (s.p2c) AddP2c(start, count);
    int32_t shown = 0;  // the segment that hidden_ is for; 0 sees nothing
    std::fill(hidden_.begin(), hidden_.end(), kHidden);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t segment = start + i < s.length ? query_segments[start + i] : 0;
      if (segment != shown) {
        for (int64_t j = 0; j < s.length; ++j) {
          hidden_[j] = segment > 0 && key_segments[j] == segment ? 0 : kHidden;
        }
        shown = segment;
      }
      float* row = scores_.data() + i * s.score_row();
      for (int64_t j = 0; j < s.padded(); j += kWidth) {
        Store(row + j, Load(row + j) + Load(hidden_.data() + j));
      }
      if (s.causal) std::fill(row + start + i + 1, row + s.padded(), kHidden);
    }
  }

  void AddC2p(int64_t start, int64_t count) {
    for (int64_t tile = start; tile < start + count; tile += kTile) {
      const Near keys(s, tile, 0, s.padded());
      const float* query = query_.data() + tile * s.width();
      const int64_t place = s.half() - (tile + kTile - 1) + keys.first;
      Multiply(kTile, keys.columns, s.width(), {query, s.width(), 1},
               c2p_.transposed.data() + place, c2p_.transposed_row, skewed_.data(),
               s.skewed_row(), false);
      for (int64_t t = 0; t < kTile; ++t) {
        float* row = scores_.data() + (tile - start + t) * s.score_row();
        const float* skewed = skewed_.data() + t * s.skewed_row() + kTile - 1 - t - keys.first;
        for (int64_t j = keys.first; j < keys.last; j += kWidth) {
          Store(row + j, Load(row + j) + Load(skewed + j));
        }
        if (keys.first > 0) AddTo(row, 0, keys.first, Dot(query + t * s.width(), c2p_.edge(s, true)));
        if (keys.last < s.padded()) {
          AddTo(row, keys.last, s.padded(), Dot(query + t * s.width(), c2p_.edge(s, false)));
        }
      }
    }
  }

  static void AddTo(float* row, int64_t first, int64_t last, float x) {
    for (int64_t j = first; j < last; ++j) row[j] += x;
  }

  void AddP2c(int64_t start, int64_t count) {
    for (int64_t tile = 0; tile < s.padded(); tile += kTile) {
      const Near queries(s, tile, start, start + count);
      if (!queries.empty()) {
        const int64_t place = s.half() + queries.first - (tile + kTile - 1);
        Multiply(kTile, queries.columns, s.width(), {key_.data() + tile * s.width(), s.width(), 1},
                 p2c_.transposed.data() + place, p2c_.transposed_row, skewed_.data(),
                 s.skewed_row(), false);
        for (int64_t i = queries.first; i < queries.last; ++i) {
          float* row = scores_.data() + (i - start) * s.score_row() + tile;
          const float* skewed = skewed_.data() + kTile - 1 + i - queries.first;
          for (int64_t t = 0; t < kTile; ++t) row[t] += skewed[t * (s.skewed_row() - 1)];
        }
      }
      AddKeyEdges(start, queries.first, start, tile, 0);
      AddKeyEdges(queries.last, start + count, start, tile, 1);
    }
  }

  // p2c of the queries from `first` to `last` that are beyond reach of a tile of keys.
  void AddKeyEdges(int64_t first, int64_t last, int64_t start, int64_t tile, int64_t side) {
    const float* edges = key_edges_.data() + side * s.padded() + tile;
    for (int64_t i = first; i < last; ++i) {
      float* row = scores_.data() + (i - start) * s.score_row() + tile;
      for (int64_t t = 0; t < kTile; ++t) row[t] += edges[t];
    }
  }

  // Turns a row of scores into probabilities, dropped ones 0; returns the log of the sum of their
  // exponentials, 0 for a row that sees nothing.
  float Softmax(float* row, int64_t query, const Dropout& dropout) const {
    Floats tops = Floats{} + kHidden;
    for (int64_t j = 0; j < s.padded(); j += kWidth) tops = Max(tops, Load(row + j));
    const float top = Max(tops);
    if (top == kHidden) {
      std::fill_n(row, s.padded(), 0);
      return 0;
    }
    Floats sums = {};
    for (int64_t j = 0; j < s.padded(); j += kWidth) {
      const Floats x = Exp(Load(row + j) - top);
      Store(row + j, x);
      sums += x;
    }
    const float sum = Sum(sums), factor = 1 / (sum * (1 - s.rate));
    for (int64_t j = 0; j < s.padded(); j += kWidth) {
      const Floats x = Load(row + j) * factor;
      Store(row + j, s.rate > 0 ? dropout.Keep(x, query, j) : x);
    }
    return top + __builtin_logf(sum);
  }

  // Scores and their result's gradient become probabilities (dropped ones 0) and scores' gradient.
  void DifferentiateSoftmax(int64_t i, int64_t query, float log_sum, float delta,
                            const Dropout& dropout) {
    float* scores = scores_.data() + i * s.score_row();
    float* gradient = dscores_.data() + i * s.score_row();
    const float factor = 1 / (1 - s.rate);
    for (int64_t j = 0; j < s.padded(); j += kWidth) {
      const Floats weight = Exp(Load(scores + j) - log_sum);
      Floats dropped = weight * factor, dweight = Load(gradient + j) * factor;
      if (s.rate > 0) {
        dropped = dropout.Keep(dropped, query, j);
        dweight = dropout.Keep(dweight, query, j);
      }
      Store(scores + j, dropped);
      Store(gradient + j, weight * (dweight - delta));
    }
  }

  void DifferentiateC2p(int64_t start, int64_t count, float* dquery) {
    const int64_t width = s.width();
    for (int64_t tile = start; tile < start + count; tile += kTile) {
      const Near keys(s, tile, 0, s.padded());
      const float* query = query_.data() + tile * width;
      float* dtile = dquery + (tile - start) * width;
      for (int64_t t = 0; t < kTile; ++t) {
        const float* row = dscores_.data() + (tile - start + t) * s.score_row();
        float* skewed = skewed_.data() + t * s.skewed_row();
        const int64_t shift = kTile - 1 - t, end = shift + keys.last - keys.first;
        std::fill_n(skewed, shift, 0);
        std::copy(row + keys.first, row + keys.last, skewed + shift);
        std::fill(skewed + end, skewed + keys.columns, 0);
        if (keys.first > 0) {
          const float sum = Total(row, 0, keys.first);
          Accumulate(sum, c2p_.edge(s, true), dtile + t * width);
          Accumulate(sum, query + t * width, c2p_gradient.data());
        }
        if (keys.last < s.padded()) {
          const float sum = Total(row, keys.last, s.padded());
          Accumulate(sum, c2p_.edge(s, false), dtile + t * width);
          Accumulate(sum, query + t * width, c2p_gradient.data() + 2 * s.half() * width);
        }
      }
      const int64_t place = s.half() - (tile + kTile - 1) + keys.first;
      DifferentiateWindow(c2p_, c2p_gradient, place, keys.columns, query, dtile);
    }
  }

  void DifferentiateP2c(int64_t start, int64_t count) {
    const int64_t width = s.width();
    for (int64_t tile = 0; tile < s.padded(); tile += kTile) {
      const Near queries(s, tile, start, start + count);
      SumKeyEdges(start, queries.first, start, tile, 0);
      SumKeyEdges(queries.last, start + count, start, tile, 1);
      if (queries.empty()) continue;
      for (int64_t t = 0; t < kTile; ++t) {
        float* skewed = skewed_.data() + t * s.skewed_row();
        const int64_t shift = kTile - 1 - t, end = shift + queries.last - queries.first;
        std::fill_n(skewed, shift, 0);
        std::fill(skewed + end, skewed + queries.columns, 0);
      }
      for (int64_t i = queries.first; i < queries.last; ++i) {
        const float* row = dscores_.data() + (i - start) * s.score_row() + tile;
        float* skewed = skewed_.data() + kTile - 1 + i - queries.first;
        for (int64_t t = 0; t < kTile; ++t) skewed[t * (s.skewed_row() - 1)] = row[t];
      }
      const int64_t place = s.half() + queries.first - (tile + kTile - 1);
      DifferentiateWindow(p2c_, p2c_gradient, place, queries.columns, key_.data() + tile * width,
                          dkey_.data() + tile * width);
    }
  }

  // The gradients of a tile's tokens and of its window of relative rows, from `skewed_`.
  void DifferentiateWindow(const Relative& relative, std::vector<float>& gradient, int64_t place,
                           int64_t columns, const float* tile, float* dtile) {
    const int64_t width = s.width();
    Multiply(kTile, width, columns, {skewed_.data(), s.skewed_row(), 1},
             relative.rows.data() + place * width, width, dtile, width, true);
    Multiply(columns, width, kTile, {skewed_.data(), 1, s.skewed_row()}, tile, width,
             gradient.data() + place * width, width, true);
  }

  void SumKeyEdges(int64_t first, int64_t last, int64_t start, int64_t tile, int64_t side) {
    float* sums = dkey_edges_.data() + side * s.padded() + tile;
    for (int64_t i = first; i < last; ++i) {
      const float* row = dscores_.data() + (i - start) * s.score_row() + tile;
      for (int64_t t = 0; t < kTile; ++t) sums[t] += row[t];
    }
  }

  void DifferentiateKeyEdges() {
    if (s.padded() <= s.reach) return;
    const int64_t width = s.width();
    for (int64_t side : {0, 1}) {
      float* gradient = p2c_gradient.data() + side * 2 * s.half() * width;
      for (int64_t j = 0; j < s.length; ++j) {
        const float sum = dkey_edges_[side * s.padded() + j];
        Accumulate(sum, p2c_.edge(s, side == 0), dkey_.data() + j * width);
        Accumulate(sum, key_.data() + j * width, gradient);
      }
    }
  }

  static float Total(const float* row, int64_t first, int64_t last) {
    Floats sum = {};
    for (int64_t j = first; j < last; j += kWidth) sum += Load(row + j);
    return Sum(sum);
  }

  void Accumulate(float factor, const float* from, float* to) const {
    for (int64_t d = 0; d < s.width(); d += kWidth) Store(to + d, Load(to + d) + factor * Load(from + d));
  }

  const Sizes& s;
  const Relative &c2p_, &p2c_;
  std::vector<float> query_, key_, value_, key_transposed_, value_transposed_;
  std::vector<float> scores_, dscores_, skewed_, hidden_, key_edges_;
  std::vector<float> dkey_, dvalue_, dkey_edges_;
};

}  // namespace deberta
