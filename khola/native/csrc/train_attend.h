// Causal attention and its gradient. Scores are made the other way round, a tile's rows being keys and its columns queries: then greatest
// scores, sums and what is subtracted lie in lanes, and weights are already what the next products take.
//
// Source   FlashAttention-2, arXiv:2307.08691 sections 3.1 and 3.2.
#pragma once

#include "train_tiles.h"

namespace kh {
namespace {

// Where rows of a head lie: [T][heads][size].
inline kh_side head_rows(const uint16_t* x, int64_t first, int heads, int size, int head) {
  return {x + (first * heads + head) * size, static_cast<int64_t>(heads) * size, 1, KH_BFLOAT16};
}
inline kh_side across(const kh_side& s) { return {s.data, s.deep, s.row, s.type}; }

// Memory of one piece of work, handed out from the front.
struct Bench {
  uint8_t* next;
  template <typename Number>
  Number* take(size_t count) {
    Number* here = reinterpret_cast<Number*>(next);
    next += (count * sizeof(Number) + 63) / 64 * 64;
    return here;
  }
};

// Whether a panel of keys has one that a query of a panel does not see.
inline bool partly_hidden(int queries, int keys, int window) { return keys == queries || (window && queries * kSide + kSide - 1 - keys * kSide >= window); }

// Which of sixteen queries see a key: all bits set.
inline void seen_by(int first_query, int key, int window, Ints& seen) {
  const Ints query = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + first_query;
  seen = query >= key;
  if (window) seen &= query < key + window;
}

struct Head {
  int first, rows, panels;
  size_t before;  // panels of earlier sequences
};

inline Head head_of(const kh_attention& t, const AttentionPlan& plan, int sequence) {
  const int rows = t.starts[sequence + 1] - t.starts[sequence];
  return {t.starts[sequence], rows, panels_of(rows), static_cast<size_t>(plan.first_panel[sequence])};
}

// Where a key head's panels of a sequence begin, in steps of panels.
inline size_t steps_before(const kh_attention& t, const AttentionPlan& plan, const Head& h, int key_head, int panels_of_head) {
  return (static_cast<size_t>(plan.first_panel[t.num_sequences]) * key_head + h.before) * panels_of_head * kPair;
}

void pack_head(const kh_attention& t, const AttentionPlan& plan, int sequence, int key_head, bool back) {
  const Head h = head_of(t, plan, sequence);
  const kh_side keys = head_rows(t.k, h.first, t.key_heads, t.key_size, key_head), values = head_rows(t.v, h.first, t.key_heads, t.value_size, key_head);
  const size_t key_at = steps_before(t, plan, h, key_head, plan.key_panels), value_at = steps_before(t, plan, h, key_head, plan.value_panels);
  for (int panel = 0; panel < h.panels; ++panel) {
    const int first = panel * kSide, rows = lesser(kSide, h.rows - first);
    pack(keys, first, rows, t.key_size, false, plan.keys + key_at + panel * plan.key_panels * kPair);
    if (back) pack(values, first, rows, t.value_size, false, plan.values + value_at + panel * plan.value_panels * kPair);
  }
  const size_t line = h.panels * kPair;
  for (int e = 0; back && e < plan.key_panels; ++e)
    pack(across(keys), e * kSide, lesser(kSide, t.key_size - e * kSide), h.rows, false, plan.keys_across + key_at + e * line);
  for (int e = 0; !back && e < plan.value_panels; ++e)
    pack(across(values), e * kSide, lesser(kSide, t.value_size - e * kSide), h.rows, false, plan.values_across + value_at + e * line);
}

// Rows of [T][heads][size] from sums that lie the other way round, each row times its lane of `factor`.
void turn_out(const float* sums, int panels, int size, int rows, const Lane* factor, uint16_t* out, int64_t stride) {
  alignas(64) float tile[256];
  for (int e = 0; e < panels; ++e)
    for (int half = 0; half < 2; ++half)
      for (int side = 0; side < 2; ++side) {
        transpose(sums + e * kPair + half * 512 + side * 256, tile);
        const int first = e * kSide + half * 16;
        for (int r = 0; r < 16 && side * 16 + r < rows && first < size; ++r) {
          Lane x;
          get(tile + r * 16, x);
          x *= factor[side][r];
          narrow(x, size - first, out + (side * 16 + r) * stride + first);
        }
      }
}

// Weights of up to four panels of keys, as right panels over keys: exp((score − most) · scale). `most` and `sum` go on.
void weigh(const kh_attention& t, float* scores, int queries, int keys, int count, uint16_t* weights, Lane* most, Lane* sum, Lane* shrunk) {
  const float scale = t.scale * kLog2E;
  for (int side = 0; side < 2; ++side) {
    Lane top = most[side];
    for (int i = 0; i < count; ++i) {
      const bool partly = partly_hidden(queries, keys + i, t.window);
      for (int r = 0; r < kSide; ++r) {
        float* at = scores + i * kPair + r / 16 * 512 + side * 256 + r % 16 * 16;
        Lane x;
        get(at, x);
        if (partly) {
          Ints seen;
          seen_by(queries * kSide + side * 16, (keys + i) * kSide + r, t.window, seen);
          choose<Lane, Ints>(seen, x, Lane{} - 1e30f, x);
          put(at, x);
        }
        raise(x, top);
      }
    }
    shrunk[side] = (most[side] - top) * scale;
    power(shrunk[side]);
    most[side] = top;
    Lane more{};
    for (int i = 0; i < count; ++i)
      for (int r = 0; r < kSide; r += 2) {
        const float* at = scores + i * kPair + r / 16 * 512 + side * 256 + r % 16 * 16;
        Lane low, high;
        get(at, low);
        get(at + 16, high);
        low = (low - top) * scale;
        high = (high - top) * scale;
        power(low);
        power(high);
        more += low;
        more += high;
        words(low, high, weights + i * kPair + side * 512 + r * 16);
      }
    sum[side] = sum[side] * shrunk[side] + more;
  }
}

void attend(const kh_attention& t, const AttentionPlan& plan, int sequence, int head, int first_panel, int last_panel, uint8_t* memory) {
  const Head h = head_of(t, plan, sequence);
  const int key_head = head / (t.heads / t.key_heads);
  const uint16_t* keys = plan.keys + steps_before(t, plan, h, key_head, plan.key_panels);
  const uint16_t* values = plan.values_across + steps_before(t, plan, h, key_head, plan.value_panels);
  Bench bench{memory};
  uint16_t *query = bench.take<uint16_t>(plan.key_panels * kPair), *weights = bench.take<uint16_t>(kTogether * kPair);
  float *scores = bench.take<float>(kTogether * kPair), *mixed = bench.take<float>(plan.value_panels * kPair);
  const kh_side queries = head_rows(t.q, h.first, t.heads, t.key_size, head);
  for (int q = first_panel; q < last_panel; ++q) {
    const int rows = lesser(kSide, h.rows - q * kSide);
    pack(queries, q * kSide, rows, t.key_size, true, query);
    std::memset(mixed, 0, plan.value_panels * kPair * sizeof(float));
    Lane most[2] = {Lane{} - 1e30f, Lane{} - 1e30f}, sum[2] = {}, shrunk[2];
    for (int k = t.window ? greater(0, q * kSide - t.window + 1) / kSide : 0; k <= q; k += kTogether) {
      const int count = lesser(kTogether, q + 1 - k);
      for (int i = 0; i < count; ++i) meet(keys + (k + i) * plan.key_panels * kPair, query, plan.key_panels, scores + i * kPair, false);
      weigh(t, scores, q, k, count, weights, most, sum, shrunk);
      for (int e = 0; e < plan.value_panels; ++e) {
        for (int r = 0; r < 2 * kSide; ++r) {
          float* at = mixed + e * kPair + r * 16;
          Lane x;
          get(at, x);
          x *= shrunk[r / 16 % 2];
          put(at, x);
        }
        meet(values + (e * h.panels + k) * kPair, weights, count, mixed + e * kPair, true);
      }
    }
    const Lane factor[2] = {1.0f / sum[0], 1.0f / sum[1]};
    turn_out(mixed, plan.value_panels, t.value_size, rows, factor, t.out + ((h.first + q * kSide) * static_cast<int64_t>(t.heads) + head) * t.value_size,
             static_cast<int64_t>(t.heads) * t.value_size);
    float* log_sums = t.log_sums + static_cast<int64_t>(head) * t.starts[t.num_sequences] + h.first + q * kSide;
    for (int r = 0; r < rows; ++r) log_sums[r] = most[r / 16][r % 16] * t.scale + logf(sum[r / 16][r % 16]);
  }
}

// What a head's gradient works on.
struct Back {
  uint16_t *queries, *gradients;            // right panels of 32 rows, over the head
  uint16_t *queries_across, *gradients_across;  // right panels of 32 numbers of the head, over the rows
  float *log_sums, *means;                  // rows, padded; logarithms to base 2
  float *query_sums;                        // [panels][key panels] pairs, the other way round
  float *key_sums, *value_sums;             // [4][panels of the head] pairs
  uint16_t *weights, *slopes, *slopes_right;  // [4][4] pairs: left panels by key, over queries; right ones by query, over keys
};

Back laid_out(const AttentionPlan& plan, int panels, uint8_t* memory, size_t* bytes) {
  Bench bench{memory};
  const size_t keys = static_cast<size_t>(plan.key_panels) * kPair, values = static_cast<size_t>(plan.value_panels) * kPair, block = kTogether * kTogether * kPair;
  Back b;
  b.queries = bench.take<uint16_t>(panels * keys);
  b.gradients = bench.take<uint16_t>(panels * values);
  b.queries_across = bench.take<uint16_t>(panels * keys);
  b.gradients_across = bench.take<uint16_t>(panels * values);
  b.log_sums = bench.take<float>(panels * kSide);
  b.means = bench.take<float>(panels * kSide);
  b.query_sums = bench.take<float>(panels * keys);
  b.key_sums = bench.take<float>(kTogether * keys);
  b.value_sums = bench.take<float>(kTogether * values);
  b.weights = bench.take<uint16_t>(block);
  b.slopes = bench.take<uint16_t>(block);
  b.slopes_right = bench.take<uint16_t>(block);
  if (bytes) *bytes = static_cast<size_t>(bench.next - memory);
  return b;
}

void pack_back(const kh_attention& t, const AttentionPlan& plan, const Head& h, int head, const Back& b) {
  const kh_side queries = head_rows(t.q, h.first, t.heads, t.key_size, head), gradients = head_rows(t.out_gradient, h.first, t.heads, t.value_size, head);
  const kh_side mixed = head_rows(t.out, h.first, t.heads, t.value_size, head);
  for (int q = 0; q < h.panels; ++q) {
    const int rows = lesser(kSide, h.rows - q * kSide);
    pack(queries, q * kSide, rows, t.key_size, true, b.queries + q * plan.key_panels * kPair);
    pack(gradients, q * kSide, rows, t.value_size, true, b.gradients + q * plan.value_panels * kPair);
  }
  for (int e = 0; e < plan.key_panels; ++e)
    pack(across(queries), e * kSide, lesser(kSide, t.key_size - e * kSide), h.rows, true, b.queries_across + e * h.panels * kPair);
  for (int e = 0; e < plan.value_panels; ++e)
    pack(across(gradients), e * kSide, lesser(kSide, t.value_size - e * kSide), h.rows, true, b.gradients_across + e * h.panels * kPair);
  const float* log_sums = t.log_sums + static_cast<int64_t>(head) * t.starts[t.num_sequences] + h.first;
  for (int row = 0; row < h.panels * kSide; ++row) {
    b.log_sums[row] = row < h.rows ? log_sums[row] * kLog2E : 1e30f;
    b.means[row] = 0;
    if (row >= h.rows) continue;
    const uint16_t *x = static_cast<const uint16_t*>(gradients.data) + row * gradients.row, *y = static_cast<const uint16_t*>(mixed.data) + row * mixed.row;
    Lane sum{};
    for (int e = 0; e < t.value_size; e += kLane) {
      Lane left, right;
      widen(x + e, lesser(kLane, t.value_size - e), left);
      widen(y + e, lesser(kLane, t.value_size - e), right);
      sum += left * right;
    }
    b.means[row] = total(sum);
  }
}

// One panel of keys against one of queries: weights, and the slope of every score.
void slope(const kh_attention& t, const Back& b, const float* scores, const float* gains, int q, int k, uint16_t* weights, uint16_t* slopes, uint16_t* slopes_right) {
  const bool partly = partly_hidden(q, k, t.window);
  for (int side = 0; side < 2; ++side) {
    Lane log_sum, mean;
    get(b.log_sums + q * kSide + side * 16, log_sum);
    get(b.means + q * kSide + side * 16, mean);
    for (int r = 0; r < kSide; r += 2) {
      Lane d[2];
      for (int i = 0; i < 2; ++i) {
        const int row = r + i, at = row / 16 * 512 + side * 256 + row % 16 * 16, to = row / 16 * 512 + row % 16 * 32 + side * 16;
        Lane p, gain;
        get(scores + at, p);
        get(gains + at, gain);
        p = p * (t.scale * kLog2E) - log_sum;
        power(p);
        if (partly) {
          Ints seen;
          seen_by(q * kSide + side * 16, k * kSide + row, t.window, seen);
          choose<Lane, Ints>(seen, p, Lane{}, p);
        }
        d[i] = p * (gain - mean) * t.scale;
        narrow(p, kLane, weights + to);
        narrow(d[i], kLane, slopes + to);
      }
      words(d[0], d[1], slopes_right + side * 512 + r * 16);
    }
  }
}

// Sums of 32 keys, a head's numbers side by side, to rows of [T][size].
void put_rows(const float* sums, int panels, int size, int rows, float* out) {
  for (int r = 0; r < rows; ++r)
    for (int e = 0; e < panels * kSide; e += kLane) {
      if (e >= size) break;
      Lane x;
      get(sums + e / kSide * kPair + r / 16 * 512 + e / 16 % 2 * 256 + r % 16 * 16, x);
      floats(x, size - e, out + static_cast<int64_t>(r) * size + e);
    }
}

// Four panels of keys against four of queries.
void block_back(const kh_attention& t, const AttentionPlan& plan, const Head& h, const Back& b, const uint16_t* const* packed, int k0, int q0) {
  const int keys = lesser(kTogether, h.panels - k0), queries = lesser(kTogether, h.panels - q0);
  const int kp = plan.key_panels, vp = plan.value_panels;
  alignas(64) float scores[kPair], gains[kPair];
  for (int i = 0; i < keys; ++i) {
    const int first = greater(0, k0 + i - q0);  // the first panel of queries that sees these keys
    if (first >= queries) continue;
    for (int j = first; j < queries; ++j) {
      meet(packed[0] + (k0 + i) * kp * kPair, b.queries + (q0 + j) * kp * kPair, kp, scores, false);
      meet(packed[1] + (k0 + i) * vp * kPair, b.gradients + (q0 + j) * vp * kPair, vp, gains, false);
      const size_t here = (i * kTogether + j) * kPair, there = (j * kTogether + i) * kPair;
      slope(t, b, scores, gains, q0 + j, k0 + i, b.weights + here, b.slopes + here, b.slopes_right + there);
    }
    const size_t here = (i * kTogether + first) * kPair;
    for (int e = 0; e < vp; ++e)
      meet(b.weights + here, b.gradients_across + (e * h.panels + q0 + first) * kPair, queries - first, b.value_sums + (i * vp + e) * kPair, true);
    for (int e = 0; e < kp; ++e)
      meet(b.slopes + here, b.queries_across + (e * h.panels + q0 + first) * kPair, queries - first, b.key_sums + (i * kp + e) * kPair, true);
  }
  for (int j = 0; j < queries; ++j) {
    const int seen = lesser(keys, q0 + j - k0 + 1);
    for (int e = 0; e < kp; ++e)
      meet(packed[2] + (e * h.panels + k0) * kPair, b.slopes_right + j * kTogether * kPair, seen, b.query_sums + ((q0 + j) * kp + e) * kPair, true);
  }
}

void attend_back(const kh_attention& t, const AttentionPlan& plan, int sequence, int head, uint8_t* memory) {
  const Head h = head_of(t, plan, sequence);
  const int key_head = head / (t.heads / t.key_heads), kp = plan.key_panels, vp = plan.value_panels;
  const Back b = laid_out(plan, h.panels, memory, nullptr);
  pack_back(t, plan, h, head, b);
  const size_t key_at = steps_before(t, plan, h, key_head, kp), value_at = steps_before(t, plan, h, key_head, vp);
  const uint16_t* packed[3] = {plan.keys + key_at, plan.values + value_at, plan.keys_across + key_at};
  std::memset(b.query_sums, 0, h.panels * kp * kPair * sizeof(float));
  const int64_t all = t.starts[t.num_sequences];
  for (int k0 = 0; k0 < h.panels; k0 += kTogether) {
    std::memset(b.key_sums, 0, kTogether * kp * kPair * sizeof(float));
    std::memset(b.value_sums, 0, kTogether * vp * kPair * sizeof(float));
    for (int q0 = k0; q0 < h.panels; q0 += kTogether) {
      if (t.window && (q0 - k0 - kTogether) * kSide >= t.window) break;
      block_back(t, plan, h, b, packed, k0, q0);
    }
    for (int i = 0; i < kTogether && k0 + i < h.panels; ++i) {
      const int64_t row = (k0 + i) * kSide, at = head * all + h.first + row;
      const int rows = lesser(kSide, h.rows - static_cast<int>(row));
      put_rows(b.key_sums + i * kp * kPair, kp, t.key_size, rows, plan.key_shares + at * t.key_size);
      put_rows(b.value_sums + i * vp * kPair, vp, t.value_size, rows, plan.value_shares + at * t.value_size);
    }
  }
  const Lane one[2] = {Lane{} + 1.0f, Lane{} + 1.0f};
  for (int q = 0; q < h.panels; ++q)
    turn_out(b.query_sums + q * kp * kPair, kp, t.key_size, lesser(kSide, h.rows - q * kSide), one,
             t.q_gradient + ((h.first + q * kSide) * static_cast<int64_t>(t.heads) + head) * t.key_size, static_cast<int64_t>(t.heads) * t.key_size);
}

// Gradients of a key head: those of its query heads, in order.
void sum_shares(const float* shares, int64_t all, int heads, int key_heads, int size, int first, int last, uint16_t* out) {
  const int group = heads / key_heads;
  for (int64_t row = first; row < last; ++row)
    for (int g = 0; g < key_heads; ++g)
      for (int e = 0; e < size; e += kLane) {
        const int count = lesser(kLane, size - e);
        Lane sum, more;
        floats(shares + (g * group * all + row) * size + e, count, sum);
        for (int i = 1; i < group; ++i) {
          floats(shares + ((g * group + i) * all + row) * size + e, count, more);
          sum += more;
        }
        narrow(sum, count, out + (row * key_heads + g) * size + e);
      }
}

void sum_heads(const kh_attention& t, const AttentionPlan& plan, int first, int last) {
  const int64_t all = t.starts[t.num_sequences];
  sum_shares(plan.key_shares, all, t.heads, t.key_heads, t.key_size, first, last, t.k_gradient);
  sum_shares(plan.value_shares, all, t.heads, t.key_heads, t.value_size, first, last, t.v_gradient);
}

}  // namespace
}  // namespace kh
