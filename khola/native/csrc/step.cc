// Executes a program for one step. Every thread walks the whole list of operations; it does its share of each and waits where the next
// one reads what the others wrote. Nothing is allocated here.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "best.h"
#include "experts.h"
#include "model.h"
#include "sound.h"
#include "states.h"

namespace {

using kh::Epilogue;
using kh::Kernels;
using kh::Norm;
using kh::Share;
using kh::kPairsTogether;
using kh::share_of;

struct Run {
  kh_model& model;
  kh_cache* cache;
  const kh_batch& batch;
};

class Walker {
 public:
  Walker(Run& run, int thread) : run_(run), m_(run.model), b_(run.batch), k_(run.model.kernels), thread_(thread), threads_(run.model.pool.threads()) {}

  void walk() {
    auto before = std::chrono::steady_clock::now();
    for (const kh_op& op : m_.ops) {
      execute(op);
      m_.pool.barrier();
      if (thread_ == 0) {
        const auto now = std::chrono::steady_clock::now();
        m_.seconds[op.op] += std::chrono::duration<double>(now - before).count();
        before = now;
      }
    }
  }

 private:
  float* slot(int index) const { return m_.slots[index]; }
  int stride(int index) const { return m_.slot_stride[index]; }
  int width(int index) const { return m_.slot_width[index]; }
  int rows(int index) const { return m_.slot_wanted[index] ? b_.num_wanted : b_.num_rows; }
  float* row(int index, int r) const { return slot(index) + static_cast<size_t>(r) * stride(index); }
  Share rows_of(int index) const { return share_of(rows(index), 1, thread_, threads_); }
  Norm norm_of(int vector, const kh_op& op) const { return {m_.vectors[vector].weight, op.f[0], op.f[1]}; }

  void execute(const kh_op& op) {
    switch (op.op) {
      case KH_EMBED: return embed(op);
      case KH_RMS_NORM: return rms_norm(op);
      case KH_LAYER_NORM: return layer_norm(op);
      case KH_LINEAR: return linear(op);
      case KH_ROTATE: return rotate(op);
      case KH_ROTATE_STORE: return rotate_store(op);
      case KH_ATTEND: return attend(op, true);
      case KH_ATTEND_STORED: return attend(op, false);
      case KH_SILU_MUL: return silu_mul(op);
      case KH_GELU: return each(op, [](float x) { return x * 0.5f * std::erfc(-x * 0.70710678f); });
      case KH_SIGMOID: return each(op, [](float x) { return 1.0f / (1.0f + std::exp(-x)); });
      case KH_ADD: return both(op, [](float x, float y) { return x + y; });
      case KH_MUL: return width(op.in0) < width(op.out) ? multiply_by_one(op) : both(op, [](float x, float y) { return x * y; });
      case KH_ROWS: return wanted(op);
      case KH_SLICE: return slice(op);
      case KH_COPY_OUT: return copy_out(op);
      case KH_ROUTE: return route(op);
      case KH_EXPERTS: return kh::ExpertWalk(m_, b_, op, thread_).walk();
      default: return kh::StateWalk(m_, run_.cache, b_, op, thread_).walk();
    }
  }

  void embed(const kh_op& op) {
    const Share mine = rows_of(op.out);
    for (int r = mine.first; r < mine.last; ++r) k_.table_row(m_.weights[op.w0], b_.ids[r], row(op.out, r));
  }

  void rms_norm(const kh_op& op) {
    const Share mine = rows_of(op.out);
    const int size = op.arg[0] ? op.arg[0] : width(op.out);
    for (int r = mine.first; r < mine.last; ++r)
      for (int at = 0; at < width(op.out); at += size) k_.rms_norm(row(op.in0, r) + at, size, norm_of(op.w0, op), row(op.out, r) + at);
  }

  void layer_norm(const kh_op& op) {
    const Share mine = rows_of(op.out);
    const kh_vector& v = m_.vectors[op.w0];
    const int n = width(op.out);
    for (int r = mine.first; r < mine.last; ++r) {
      const float* x = row(op.in0, r);
      float* y = row(op.out, r);
      double mean = 0, square = 0;
      for (int i = 0; i < n; ++i) mean += x[i];
      mean /= n;
      for (int i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
      const double turn = 1.0 / std::sqrt(square / n + op.f[0]);
      for (int i = 0; i < n; ++i) y[i] = static_cast<float>((x[i] - mean) * turn) * v.weight[i] + (v.bias ? v.bias[i] : 0.0f);
    }
  }

  void linear(const kh_op& op) {
    const kh_weight& weight = m_.weights[op.w0];
    const RowKinds& kinds = m_.slot_wanted[op.in0] ? m_.wanted_kinds : m_.packed_kinds;
    const int height = kinds.few + kinds.many;
    if (height == 0) return;  // no logits wanted: the same on all threads, so nobody waits at the barrier below
    const bool alone = height == 1 && kinds.few == 1;
    kh::Operand operand = alone ? m_.own[thread_] : m_.operand;
    operand.k_pad = weight.k_pad;
    const Share pairs = share_of(weight.n_pad / kh::kStrip, 1, thread_, threads_);
    m_.deal.begin(thread_, pairs);
    pack_few(op, weight, operand, kinds, alone ? Share{0, weight.k_pad} : share_of(weight.k_pad, kh::kDeep, thread_, threads_));
    const size_t index = static_cast<size_t>(&op - m_.ops.data());
    const bool handed = index > 0 && m_.hands_on[index - 1], hands_on = m_.hands_on[index];
    if (handed) operand.tiles = m_.handed;
    else pack_many(op, weight, operand, kinds, share_of(kinds.many, 16, thread_, threads_));
    if (!alone) m_.pool.barrier();
    Epilogue end;
    end.bias = weight.bias;
    end.gated = op.flags & KH_GATED;
    end.n = weight.n;
    const bool rough = op.flags & KH_HEAD && m_.finder.rough;
    if (op.flags & KH_ADD_IN1) {
      end.add = slot(op.in1);
      end.add_stride = stride(op.in1);
    }
    end.out = slot(op.out);
    end.out_stride = stride(op.out);
    uint16_t* tiles = nullptr;
    if (hands_on) {
      tiles = m_.handed;
      end.tile_steps = m_.weights[m_.ops[index + 1].w0].k_pad / 32;
      if (thread_ == 0) clear_rest(tiles, end.tile_steps, kinds.many);
    }
    if (op.flags & KH_HEAD) {
      end.out = b_.logits;
      end.out_stride = weight.n;
      end.block_max = b_.block_max;
      end.max_stride = (weight.n + 31) / 32;
    }
    const int most = kh::pairs_at_a_time(pairs.last - pairs.first, kinds.many > 0);
    for (Share taken; m_.deal.take(thread_, most, taken);) multiply(weight, operand, kinds, end, tiles, taken, rough ? k_.few_high : k_.few);
    if (rough) {
      note_margins(op, weight, pairs);
      refine(pairs);
    }
  }

  // Rows of the last sixteen that do not exist.
  static void clear_rest(uint16_t* tiles, int steps, int rows) {
    for (int r = rows; r < (rows + 15) / 16 * 16; ++r)
      for (int step = 0; step < steps; ++step) std::memset(tiles + (static_cast<size_t>(r / 16) * steps + step) * 512 + r % 16 * 32, 0, 64);
  }

  // The best logits of rough rows are made exact; every thread does so in its own part of the head.
  void refine(Share pairs) {
    const Share mine = share_of(b_.num_wanted, 1, thread_, threads_);
    for (int round = 0; round < kh::kRounds; ++round) {
      m_.pool.barrier();
      for (int r = mine.first; r < mine.last; ++r) kh::mark_blocks(m_, b_, r, round);
      m_.pool.barrier();
      for (int r = 0; r < b_.num_wanted; ++r)
        kh::refine_blocks(m_, b_, r, pairs.first, pairs.last, m_.own[thread_], m_.scratch[thread_]);
    }
  }

  // How far this thread's part of rough logits may be off, and what they were made of.
  void note_margins(const kh_op& op, const kh_weight& weight, Share pairs) {
    const int blocks = (weight.n + 31) / 32;
    for (int r = 0; r < rows(op.in0); ++r) {
      kh::margins_of(m_, op, row(op.in0, r), pairs.first, pairs.last, b_.margins + static_cast<size_t>(r) * blocks, m_.scratch[thread_]);
      if (thread_ == 0) std::memcpy(b_.inputs + static_cast<size_t>(r) * weight.k, row(op.in0, r), sizeof(float) * weight.k);
    }
  }

  using Few = decltype(Kernels::few);

  // Rows of both kinds take turns at a run of strip pairs, so that memory is read once.
  void multiply(const kh_weight& weight, const kh::Operand& operand, const RowKinds& kinds, Epilogue& end, uint16_t* handed, Share pairs, Few few) {
    const int run = kinds.few && kinds.many ? kPairsTogether : std::max(1, pairs.last - pairs.first);
    for (int pair = pairs.first; pair < pairs.last; pair += run) {
      const Share here{pair, std::min(pair + run, pairs.last)};
      if (kinds.few) multiply_few(weight, operand, kinds, end, here, few);
      if (!kinds.many) continue;
      kh::Operand tiles = operand;
      tiles.rows = kinds.many;
      end.rows = kinds.many_rows();
      end.tiles = handed;
      k_.many(weight, tiles, here.first, here.last, end, m_.scratch[thread_]);
      end.tiles = nullptr;
    }
  }

  // What one call cannot multiply takes turns at strip pairs that stay in a cache meanwhile.
  void multiply_few(const kh_weight& weight, const kh::Operand& operand, const RowKinds& kinds, Epilogue& end, Share pairs, Few few) {
    const int pair_bytes = weight.k_pad / kh::kDeep * 2 * weight.tile_bytes, most = k_.few_blocks * kh::kFewRows;
    const int run = kinds.few > most ? std::max(1, kCachedBytes / pair_bytes) : std::max(1, pairs.last - pairs.first);
    for (int pair = pairs.first; pair < pairs.last; pair += run)
      for (int row = 0; row < kinds.few; row += most) {
        kh::Operand blocks = operand;
        blocks.rows = kinds.few;
        blocks = blocks.block(row / kh::kFewRows);
        blocks.rows = std::min(kinds.few - row, most);
        end.rows = kinds.few_rows() + row;
        few(weight, blocks, pair, std::min(pair + run, pairs.last), end, m_.scratch[thread_]);
      }
  }

  // Each thread makes some inputs of all rows: mostly those that it wrote itself a moment ago. Two that made rows each would write side by
  // side on the same lines of scales and sums, and wait for each other's cache.
  void pack_few(const kh_op& op, const kh_weight& weight, kh::Operand operand, const RowKinds& kinds, Share inputs) {
    auto pack = weight.bits == 16 ? k_.to_rows16 : k_.to_int8;
    operand.rows = kinds.few;
    for (int row = 0; row < kinds.few; row += kh::kFewRows) {
      kh::Operand block = operand.block(row / kh::kFewRows);
      pack_runs(op, weight, block, kinds.few_rows() + row, {0, block.rows}, inputs, pack);
    }
  }

  void pack_many(const kh_op& op, const kh_weight& weight, kh::Operand& operand, const RowKinds& kinds, Share mine) {
    operand.rows = kinds.many;
    pack_runs(op, weight, operand, kinds.many_rows(), mine, {0, weight.k_pad}, k_.to_tiles);
  }

  // Some inputs of the rows [mine.first, mine.last) of an operand, which are rows `from[…]` of the slot, a run of neighbours at a time.
  void pack_runs(const kh_op& op, const kh_weight& weight, kh::Operand& operand, const int32_t* from, Share mine, Share inputs,
                 decltype(Kernels::to_int8) pack) {
    const Norm norm = op.flags & KH_NORMED ? norm_of(op.w1, op) : Norm{};
    for (int row = mine.first, next; row < mine.last; row = next) {
      next = row + 1;
      while (next < mine.last && from[next] == from[next - 1] + 1) ++next;
      pack(this->row(op.in0, from[row] - row), stride(op.in0), weight.k, norm, operand, {row, next, inputs.first, inputs.last});
    }
  }

  static constexpr int kCachedBytes = 256 << 10; // weights that stay in a second-level cache beside the rows

  const float* turn(int rope, int position) const { return m_.turns[rope] + static_cast<size_t>(position) * 2 * m_.ropes[rope].half; }

  void turn_row(int rope, int position, float* x, int heads, int size) {
    const int half = m_.ropes[rope].half;
    const float* table = turn(rope, position);
    k_.rotate(x, heads, size, table, table + half, half);
  }

  void rotate(const kh_op& op) {
    const Share mine = rows_of(op.out);
    const int size = op.arg[1];
    for (int r = mine.first; r < mine.last; ++r) {
      std::memcpy(row(op.out, r), row(op.in0, r), sizeof(float) * width(op.out));
      turn_row(op.arg[0], b_.positions[r], row(op.out, r), width(op.out) / size, size);
    }
  }

  int sequence_of(int r) const {
    return static_cast<int>(std::upper_bound(b_.starts, b_.starts + b_.num_sequences + 1, r) - b_.starts) - 1;
  }

  // Pages of the cache, and how this model's keys are made codes.
  kh::LayerPlanes planes_of(int layer) const {
    kh::LayerPlanes planes = run_.cache->layers[layer];
    if (!m_.key_steps[layer].empty()) planes.key_steps = m_.key_steps[layer].data();
    return planes;
  }

  void store(int layer, int r, const float* k, const float* v) {
    const int position = b_.positions[r];
    const int32_t page = b_.pages[static_cast<size_t>(sequence_of(r)) * b_.page_stride + position / KH_PAGE];
    k_.store(planes_of(layer), k, v, page, position % KH_PAGE);
  }

  void rotate_store(const kh_op& op) {
    const int size = op.arg[1], heads = op.arg[2], key_heads = op.arg[3];
    // Two tokens of a pair share a dword of the value page: whole pairs to one thread, so that no two write the same one.
    const Share mine = pair_rows();
    for (int r = mine.first; r < mine.last; ++r) {
      float* qkv = row(op.in0, r);
      turn_row(op.w1, b_.positions[r], qkv, heads + key_heads, size);
      std::memcpy(row(op.out, r), qkv, sizeof(float) * heads * size);
      store(op.arg[0], r, qkv + heads * size, qkv + (heads + key_heads) * size);
    }
  }

  // This thread's rows, cut where a pair of tokens of one sequence is not torn apart.
  Share pair_rows() const {
    Share mine = share_of(b_.num_rows, 1, thread_, threads_);
    mine.first = past_pair(mine.first);
    mine.last = past_pair(mine.last);
    return mine;
  }

  int past_pair(int r) const {
    const bool torn = r > 0 && r < b_.num_rows && b_.positions[r] % 2 == 1 && b_.positions[r - 1] == b_.positions[r] - 1;
    return torn ? r + 1 : r;
  }

  void attend(const kh_op& op, bool stores) {
    const int layer = op.arg[0];
    const kh::LayerPlanes planes = planes_of(layer);
    if (stores) {
      const Share mine = pair_rows();
      for (int r = mine.first; r < mine.last; ++r) store(layer, r, row(op.in1, r), row(op.in2, r));
      m_.pool.barrier();
    }
    Attention all{op, planes, width(op.in0) / planes.key_size / planes.heads};
    all.block = std::max(1, kFolded / all.group);
    for_tasks(all, [&](const Piece& piece) { all.blocks += piece.blocks, ++all.tasks; });
    all.tears = k_.part_floats && all.group <= kFolded && all.tasks < 16 * threads_;
    bool torn = false;
    for_tasks(all, [&](const Piece& piece) { torn |= attend_piece(all, piece); });
    if (!torn) return;
    m_.pool.barrier();
    for_tasks(all, [&](const Piece& piece) { join_piece(all, piece); });
  }

  static constexpr int kFolded = 32;  // rows times query heads that a kernel takes at once

  // One attention: what it works on, and how its work is cut. Work is counted in blocks of keys, and every thread has one run of it.
  struct Attention {
    const kh_op& op;
    const kh::LayerPlanes& planes;
    int group;
    int block = 1;  // rows of a task
    int64_t blocks = 0, tasks = 0;
    bool tears = false;  // a task may belong to two threads
  };

  struct Piece {
    int sequence, row, rows, head;
    int first, blocks;  // blocks of keys
    int64_t at;         // blocks of keys of all tasks before
  };

  template <typename Function>
  void for_tasks(const Attention& all, Function function) const {
    int64_t at = 0;
    for (int s = 0; s < b_.num_sequences; ++s)
      for (int row = b_.starts[s]; row < b_.starts[s + 1]; row += all.block) {
        const int rows = std::min(all.block, b_.starts[s + 1] - row), position = b_.positions[row], window = all.op.arg[2];
        const int first = window ? std::max(0, position - window + 1) / kh::kKeyBlock : 0;
        const int blocks = (position + rows - 1) / kh::kKeyBlock + 1 - first;
        for (int head = 0; head < all.planes.heads; ++head, at += blocks) function(Piece{s, row, rows, head, first, blocks, at});
      }
  }

  int64_t first_block(const Attention& all, int thread) const { return all.blocks * thread / threads_; }
  int owner(const Attention& all, int64_t block) const {
    int thread = 0;
    while (first_block(all, thread + 1) <= block) ++thread;
    return thread;
  }

  // Does this thread's share of a task; says whether the task is torn.
  bool attend_piece(const Attention& all, const Piece& piece) {
    const int first = owner(all, piece.at), last = all.tears ? owner(all, piece.at + piece.blocks - 1) : first;
    kh::AttendTask task = task_of(all, piece);
    if (first == last) {
      if (first == thread_) k_.attend(all.planes, task, m_.scratch[thread_]);
      return false;
    }
    const int64_t from = std::max(piece.at, first_block(all, thread_)), to = std::min(piece.at + piece.blocks, first_block(all, thread_ + 1));
    if (from < to) {
      task.block0 = piece.first + static_cast<int>(from - piece.at);
      task.block1 = piece.first + static_cast<int>(to - piece.at);
      task.parts = m_.parts[first] + (from - piece.at) * k_.part_floats(all.planes.value_size);
      k_.attend(all.planes, task, m_.scratch[thread_]);
    }
    return true;
  }

  void join_piece(const Attention& all, const Piece& piece) {
    const int first = owner(all, piece.at);
    if (first != thread_ || owner(all, piece.at + piece.blocks - 1) == first) return;
    kh::AttendTask task = task_of(all, piece);
    task.block0 = piece.first;
    task.block1 = piece.first + piece.blocks;
    task.parts = m_.parts[first];
    task.joins = true;
    k_.attend(all.planes, task, m_.scratch[thread_]);
  }

  kh::AttendTask task_of(const Attention& all, const Piece& piece) const {
    const kh_op& op = all.op;
    kh::AttendTask task;
    task.q = row(op.in0, piece.row) + piece.head * all.group * all.planes.key_size;
    task.out = row(op.out, piece.row) + piece.head * all.group * all.planes.value_size;
    task.q_stride = stride(op.in0);
    task.out_stride = stride(op.out);
    task.rows = piece.rows;
    task.group = all.group;
    task.position = b_.positions[piece.row];
    task.window = op.arg[2];
    task.scale = op.f[0];
    task.pages = b_.pages + static_cast<size_t>(piece.sequence) * b_.page_stride;
    task.key_head = piece.head;
    return task;
  }

  void silu_mul(const kh_op& op) {
    const Share mine = rows_of(op.out);
    for (int r = mine.first; r < mine.last; ++r) k_.silu_mul(row(op.in0, r), row(op.in1, r), width(op.out), row(op.out, r));
  }

  template <typename Function>
  void each(const kh_op& op, Function function) {
    const Share mine = rows_of(op.out);
    for (int r = mine.first; r < mine.last; ++r)
      std::transform(row(op.in0, r), row(op.in0, r) + width(op.out), row(op.out, r), function);
  }

  template <typename Function>
  void both(const kh_op& op, Function function) {
    const Share mine = rows_of(op.out);
    for (int r = mine.first; r < mine.last; ++r)
      std::transform(row(op.in0, r), row(op.in0, r) + width(op.out), row(op.in1, r), row(op.out, r), function);
  }

  void multiply_by_one(const kh_op& op) {
    const Share mine = rows_of(op.out);
    for (int r = mine.first; r < mine.last; ++r) {
      const float factor = *row(op.in0, r);
      std::transform(row(op.in1, r), row(op.in1, r) + width(op.out), row(op.out, r), [factor](float x) { return factor * x; });
    }
  }

  void route(const kh_op& op) {
    const Share mine = rows_of(op.out);
    const float* bias = op.w0 < 0 ? nullptr : m_.vectors[op.w0].weight;
    float* memory = reinterpret_cast<float*>(m_.scratch[thread_].data);
    for (int r = mine.first; r < mine.last; ++r) kh::route_row(op, row(op.in0, r), width(op.in0), bias, memory, row(op.out, r));
  }

  void wanted(const kh_op& op) {
    const Share mine = rows_of(op.out);
    for (int r = mine.first; r < mine.last; ++r) std::memcpy(row(op.out, r), row(op.in0, b_.wanted[r]), sizeof(float) * width(op.out));
  }

  void slice(const kh_op& op) {
    const Share mine = rows_of(op.out);
    for (int r = mine.first; r < mine.last; ++r) std::memcpy(row(op.out, r), row(op.in0, r) + op.arg[0], sizeof(float) * width(op.out));
  }

  void copy_out(const kh_op& op) {
    const Share mine = rows_of(op.in0);
    const int n = width(op.in0);
    for (int r = mine.first; r < mine.last; ++r) std::memcpy(b_.logits + static_cast<size_t>(r) * n, row(op.in0, r), sizeof(float) * n);
  }

  Run& run_;
  kh_model& m_;
  const kh_batch& b_;
  const Kernels& k_;
  const int thread_, threads_;
};

void run_thread(void* context, int thread) { Walker(*static_cast<Run*>(context), thread).walk(); }

}  // namespace

extern "C" int32_t kh_step(kh_model* model, kh_cache* cache, const kh_batch* batch) {
  if (!model || !batch || !kh::sound(*model, cache, *batch)) return KH_BAD_ARGUMENT;
  model->packed_kinds.sort(batch->answers, batch->num_rows);
  model->wanted_kinds.sort(batch->drawn, batch->num_wanted);
  model->turn_to(*std::max_element(batch->positions, batch->positions + batch->num_rows));
  const bool rough = kh::shall_be_rough(*model, *batch);
  Run run{*model, cache, *batch};
  model->pool.run(run_thread, &run);
  if (rough) kh::note_refined(*model, *batch);
  return rough ? KH_ROUGH : KH_OK;
}
