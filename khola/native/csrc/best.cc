// The best logits of a row, without looking at most of them, and without having read most of the head.
//
// A step may have read the high nibbles of the head alone. A logit then lacks a sum over its inputs: activation times scale times what the
// low nibble of the weight adds to the middle of its sixteen values. Nothing ties low nibbles to the activations they meet, so that the sum
// behaves like one of independent numbers that are spread evenly: sixteen equal steps, of variance 255 / 12. Eight standard deviations are
// exceeded about once in 10^15 (measured: 30 million logits of Qwen2.5-0.5B reach 5.7, as many normal numbers would). A block of 32 logits
// takes the greatest scale of its weights in every group of inputs. Blocks whose greatest logit plus margin might be among the best are
// multiplied again with whole codes, by the very kernel that multiplies a head at once: their logits have the same bits as if all had been.

#include "best.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "layout.h"

namespace kh {

namespace {

constexpr float kDeviations = 8.0f;
// Of one input: 255 / 12, and a quarter because the middle of a nibble is taken half a step too low.
constexpr float kVariance = 21.5f;
// For what rounding adds on both ways.
constexpr float kRounding = 1.001f;

// A rough step pays while its rows together read less than this share of the head again: the more rows, the less, because they are held
// up by multiplication more and more, and by memory less. Where it does not pay it is tried anew now and then.
constexpr float kPays[] = {0, 0.35f, 0.28f, 0.2f, 0.12f};
constexpr int kRoughRows = 4;
constexpr float kMemory = 0.7f;
constexpr int kTryAgain = 32;
// Best logits of a row that a step makes exact by itself.
constexpr int kMostBest = 256;


Norm norm_of(const kh_model& model, const kh_op& op) {
  return op.flags & KH_NORMED ? Norm{model.vectors[op.w1].weight, op.f[0], op.f[1]} : Norm{};
}

}  // namespace

bool shall_be_rough(kh_model& model, const kh_batch& batch) {
  Finder& f = model.finder;
  f.rough = false;
  if (!f.head || !batch.margins || !batch.inputs || !batch.block_max || !batch.best || !model.slot_wanted[f.head->in0]) return false;
  if (!model.kernels.few_high || !model.weights[f.head->w0].split || !model.wanted_kinds.few || model.wanted_kinds.many) return false;
  if (batch.num_wanted > kRoughRows) return false;
  return f.rough = f.refined * static_cast<float>(batch.num_wanted) < kPays[batch.num_wanted] || f.steps++ % kTryAgain == 0;
}

void note_refined(kh_model& model, const kh_batch& batch) {
  const int64_t blocks = static_cast<int64_t>(batch.num_wanted) * ((model.weights[model.finder.head->w0].n + 31) / 32);
  const int64_t exact = std::count(batch.margins, batch.margins + blocks, 0.0f);
  const float share = static_cast<float>(exact) / static_cast<float>(blocks);
  model.finder.refined = kMemory * model.finder.refined + (1 - kMemory) * share;
}

void margins_of(const kh_model& model, const kh_op& head, const float* x, int block0, int block1, float* margins, Scratch& scratch) {
  const kh_weight& w = model.weights[head.w0];
  const Norm norm = norm_of(model, head);
  float* normed = reinterpret_cast<float*>(scratch.data);
  if (norm.weight) model.kernels.rms_norm(x, w.k, norm, normed);
  else std::memcpy(normed, x, sizeof(float) * w.k);
  const int blocks = w.n_pad / kStrip, end = std::min(block1, (w.n + 31) / 32);
  std::fill(margins + block0, margins + end, 0.0f);
  for (int k = 0; k < w.k; k += kGroup) {
    float energy = 0;
    for (int i = k; i < std::min(k + kGroup, w.k); ++i) energy += normed[i] * normed[i];
    const float* spread = spreads_of(w) + static_cast<size_t>(k / kGroup) * blocks;
    for (int b = block0; b < end; ++b) margins[b] += energy * spread[b];
  }
  for (int b = block0; b < end; ++b) margins[b] = kRounding * kDeviations * std::sqrt(kVariance * margins[b]);
}

namespace {

// One row of the head's input, as `few` takes it.
void pack_row(const kh_model& model, const float* input, Operand& operand) {
  const kh_op& head = *model.finder.head;
  const kh_weight& w = model.weights[head.w0];
  operand.rows = 1;
  operand.k_pad = w.k_pad;
  model.kernels.to_int8(input, w.k, w.k, norm_of(model, head), operand, {0, 1, 0, w.k_pad});
}

// The 32 logits of a block with whole codes.
void multiply_block(const kh_model& model, const Operand& operand, int block, float* logits, float* block_max, Scratch& scratch) {
  const kh_weight& w = model.weights[model.finder.head->w0];
  Epilogue end;
  end.bias = w.bias;
  end.n = w.n;
  end.out = logits;
  end.block_max = block_max;
  model.kernels.few(w, operand, block, block + 1, end, scratch);
}

// The greatest `most` of the numbers that it is shown.
class Greatest {
 public:
  Greatest(float* heap, int most) : heap_(heap), most_(most) {}
  void show(float x) {
    if (count_ == most_) {
      if (!(x > heap_[0])) return;
      std::pop_heap(heap_, heap_ + count_--, std::greater<float>());
    }
    heap_[count_++] = x;
    std::push_heap(heap_, heap_ + count_, std::greater<float>());
  }
  // The least of them.
  float least() const { return count_ == most_ ? heap_[0] : -std::numeric_limits<float>::infinity(); }

 private:
  float* heap_;
  int most_, count_ = 0;
};

}  // namespace

// Marked are negative margins.
void mark_blocks(const kh_model& model, const kh_batch& batch, int row, int round) {
  const int n = model.weights[model.finder.head->w0].n, blocks = (n + 31) / 32;
  const float* logits = batch.logits + static_cast<size_t>(row) * n;
  const float* block_max = batch.block_max + static_cast<size_t>(row) * blocks;
  float* margins = batch.margins + static_cast<size_t>(row) * blocks;
  float heap[kMostBest];
  Greatest greatest(heap, std::max(1, std::min(batch.best[row], kMostBest)));
  for (int b = 0; b < blocks; ++b) {
    if (round == 0) greatest.show(block_max[b]);
    else if (margins[b] == 0)
      for (int i = 32 * b; i < std::min(n, 32 * b + 32); ++i) greatest.show(logits[i]);
  }
  const float least = greatest.least();
  for (int b = 0; b < blocks; ++b)
    if (block_max[b] + (round == 0 ? 0.0f : margins[b]) >= least) margins[b] = -margins[b];
}

void refine_blocks(const kh_model& model, const kh_batch& batch, int row, int block0, int block1, Operand& operand, Scratch& scratch) {
  const kh_weight& w = model.weights[model.finder.head->w0];
  const int blocks = (w.n + 31) / 32;
  float* margins = batch.margins + static_cast<size_t>(row) * blocks;
  bool packed = false;
  for (int b = block0; b < std::min(block1, blocks); ++b) {
    if (margins[b] >= 0) continue;
    if (!packed) pack_row(model, batch.inputs + static_cast<size_t>(row) * w.k, operand);
    packed = true;
    multiply_block(model, operand, b, batch.logits + static_cast<size_t>(row) * w.n, batch.block_max + static_cast<size_t>(row) * blocks, scratch);
    margins[b] = 0;
  }
}

namespace {

struct Found {
  float logit;
  int32_t id;
};

// Whether one comes before the other.
bool before(const Found& a, const Found& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

// One search. Blocks are taken in falling order of what their logits could be at most; a block whose logits are approximations is made
// exact and takes its place again; the search ends when no block can hold anything better than what was found.
class Search {
 public:
  Search(kh_model& model, const kh_row& row, int most, float least)
      : m_(model), f_(model.finder), row_(row), w_(model.weights[f_.head->w0]), most_(most), least_(least), blocks_((row.num_tokens + 31) / 32) {}

  // False if a logit is not finite.
  bool run(int32_t* ids, float* logits) {
    mark_changed();
    for (int b = 0; b < blocks_; ++b) {
      f_.bounds[b] = f_.plain[b] == ~0u ? row_.block_max[b] + margin(b) : bound_of_plain(b);
      // NaN fails every comparison: no bound may be one.
      if (std::isnan(row_.block_max[b]) && (b + 1 < blocks_ || row_.num_tokens % 32 == 0 || !finite(b))) return false;
    }
    for (int top = 0; top * kTop < blocks_; ++top) retop(top);
    heap_ = ids, values_ = logits;
    for (int b; (b = best_block()) >= 0;) {
      if (margin(b) > 0) {
        make_exact(b);
        if (!finite(b)) return false;
        f_.bounds[b] = bound_of_plain(b);
      } else {
        take(b);
        f_.bounds[b] = -std::numeric_limits<float>::infinity();
      }
      retop(b / kTop);
    }
    for (int i = 0; i < row_.num_changed; ++i)
      if (!take_changed(i)) return false;
    sort();
    return true;
  }

  int count() const { return count_; }

 private:
  float margin(int b) const { return row_.margins ? row_.margins[b] : 0.0f; }

  int ids_in(int b) const { return std::min(32, row_.num_tokens - 32 * b); }

  void mark_changed() {
    for (int b = 0; b < blocks_; ++b) f_.plain[b] = ids_in(b) == 32 ? ~0u : (1u << ids_in(b)) - 1;
    for (int i = 0; i < row_.num_changed; ++i) f_.plain[row_.changed[i] / 32] &= ~(1u << row_.changed[i] % 32);
  }

  // No plain logit of a block is greater.
  float bound_of_plain(int b) const {
    float greatest = -std::numeric_limits<float>::infinity();
    for (int i = 0; i < 32; ++i)
      if (f_.plain[b] >> i & 1) greatest = std::max(greatest, row_.logits[32 * b + i]);
    return greatest + margin(b);
  }

  bool finite(int b) const {
    for (int i = 0; i < ids_in(b); ++i)
      if (!std::isfinite(row_.logits[32 * b + i])) return false;
    return true;
  }

  float changed(int i, float x) const {
    x = x + row_.bias[i];
    x = x > 0 ? x / row_.penalty[i] : x * row_.penalty[i];
    x = x - row_.minus[i];
    return std::max(-std::numeric_limits<float>::max(), std::min(std::numeric_limits<float>::max(), x));
  }

  // A changed logit comes in alone; its block is made exact only if it could count. Changes keep the order.
  bool take_changed(int i) {
    const int id = row_.changed[i], b = id / 32;
    if (margin(b) > 0 && counts({changed(i, row_.logits[id] + margin(b)), -1})) {
      make_exact(b);
      if (!finite(b)) return false;
    }
    if (margin(b) == 0) offer({changed(i, row_.logits[id]), id});
    return true;
  }

  void retop(int top) {
    const auto first = f_.bounds.begin() + top * kTop;
    f_.tops[top] = *std::max_element(first, f_.bounds.begin() + std::min(blocks_, (top + 1) * kTop));
  }

  // The block that could hold the best of what was not taken; −1 if none could hold anything that counts.
  int best_block() const {
    const int tops = (blocks_ + kTop - 1) / kTop;
    const int top = static_cast<int>(std::max_element(f_.tops.begin(), f_.tops.begin() + tops) - f_.tops.begin());
    const float bound = f_.tops[top];
    if (bound == -std::numeric_limits<float>::infinity() || !counts({bound, -1})) return -1;
    const auto first = f_.bounds.begin() + top * kTop;
    return static_cast<int>(std::find(first, first + kTop, bound) - f_.bounds.begin());
  }

  bool counts(const Found& found) const { return found.logit >= least_ && (count_ < most_ || before(found, {values_[0], heap_[0]})); }

  void take(int b) {
    for (int i = 0; i < 32; ++i)
      if (f_.plain[b] >> i & 1) offer({row_.logits[32 * b + i], 32 * b + i});
  }

  // The results are a heap whose root is the one that would be given up first.
  void offer(const Found& found) {
    if (!counts(found)) return;
    if (count_ < most_) return rise(count_++, found);
    sink(0, count_, found);
  }

  void put(int place, const Found& found) { values_[place] = found.logit, heap_[place] = found.id; }
  Found at(int place) const { return {values_[place], heap_[place]}; }

  void rise(int place, const Found& found) {
    for (int parent; place > 0 && before(at(parent = (place - 1) / 2), found); place = parent) put(place, at(parent));
    put(place, found);
  }

  void sink(int place, int size, const Found& found) {
    for (int child; (child = 2 * place + 1) < size; place = child) {
      if (child + 1 < size && before(at(child), at(child + 1))) ++child;
      if (!before(found, at(child))) break;
      put(place, at(child));
    }
    put(place, found);
  }

  // Greatest first: the root, the last of all, goes to the end.
  void sort() {
    for (int size = count_ - 1; size > 0; --size) {
      const Found last = at(size);
      put(size, at(0));
      sink(0, size, last);
    }
  }

  void make_exact(int b) {
    if (!packed_) pack_row(m_, row_.input, f_.operand);
    packed_ = true;
    multiply_block(m_, f_.operand, b, row_.logits, row_.block_max, m_.scratch[0]);
    row_.margins[b] = 0;
  }

  kh_model& m_;
  Finder& f_;
  const kh_row& row_;
  const kh_weight& w_;
  const int most_;
  const float least_;
  const int blocks_;
  bool packed_ = false;
  int32_t* heap_ = nullptr;
  float* values_ = nullptr;
  int count_ = 0;
};

bool sound(const kh_model& model, const kh_row& row, int most) {
  if (!model.finder.head || most < 1 || !row.logits || !row.block_max) return false;
  if (row.margins && (!row.input || model.kernels.precise)) return false;
  const int n = model.weights[model.finder.head->w0].n;
  if (row.num_tokens < 1 || row.num_tokens > n || row.num_changed < 0) return false;
  for (int i = 0; i < row.num_changed; ++i)
    if (row.changed[i] < 0 || row.changed[i] >= row.num_tokens) return false;
  return true;
}

}  // namespace

}  // namespace kh

extern "C" int32_t kh_best(kh_model* model, const kh_row* row, int32_t most, float least, int32_t* ids, float* logits) {
  if (!model || !row || !ids || !logits || !kh::sound(*model, *row, most)) return KH_BAD_ARGUMENT;
  kh::Search search(*model, *row, most, least);
  return search.run(ids, logits) ? search.count() : KH_NOT_FINITE;
}
