// Executes a program for one step. Every thread walks the whole list of operations; it does its share of each and waits where the next
// one reads what the others wrote. Nothing is allocated here.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "ahead.h"
#include "attention.h"
#include "best.h"
#include "experts.h"
#include "heads.h"
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
      if (m_.streams && thread_ == 0) kh::read_next(m_, op);
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
  kh::AttentionWalk attention() const { return {m_, *run_.cache, b_, thread_}; }
  Norm norm_of(int vector, const kh_op& op) const { return {m_.vectors[vector].weight, op.f[0], op.f[1]}; }

  void execute(const kh_op& op) {
    switch (op.op) {
      case KH_EMBED: return embed(op);
      case KH_RMS_NORM: return rms_norm(op);
      case KH_LAYER_NORM: return layer_norm(op);
      case KH_LINEAR: return linear(op);
      case KH_ROTATE: return rotate(op);
      case KH_ROTATE_STORE: return attention().rotate_store(op);
      case KH_ATTEND: return attention().attend(op, true);
      case KH_ATTEND_STORED: return attention().attend(op, false);
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
      case KH_HEAD_LINEAR: return kh::HeadWalk(m_, b_, op, thread_).walk();
      case KH_ATTEND_LATENT: return attention().attend_latent(op);
      case KH_KEEP: return keep(op);
      case KH_KEPT: return kept(op);
      case KH_JOIN: return join(op);
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

  void pack_runs(const kh_op& op, const kh_weight& weight, kh::Operand& operand, const int32_t* from, Share mine, Share inputs, kh::ToForm pack) {
    const Norm norm = op.flags & KH_NORMED ? norm_of(op.w1, op) : Norm{};
    kh::pack_runs(slot(op.in0), stride(op.in0), weight.k, norm, operand, from, mine, inputs, pack);
  }

  static constexpr int kCachedBytes = 256 << 10; // weights that stay in a second-level cache beside the rows

  void rotate(const kh_op& op) {
    const Share mine = rows_of(op.out);
    const int size = op.arg[1];
    for (int r = mine.first; r < mine.last; ++r) {
      std::memcpy(row(op.out, r), row(op.in0, r), sizeof(float) * width(op.out));
      kh::turn_row(m_, op.arg[0], b_.positions[r], row(op.out, r), width(op.out) / size, size);
    }
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
    const int size = op.arg[2] ? op.arg[2] : width(op.out), heads = width(op.out) / size;
    for (int r = mine.first; r < mine.last; ++r)
      for (int h = 0; h < heads; ++h) std::memcpy(row(op.out, r) + h * size, row(op.in0, r) + h * op.arg[1] + op.arg[0], sizeof(float) * size);
  }

  void copy_out(const kh_op& op) {
    const Share mine = rows_of(op.in0);
    const int n = width(op.in0);
    for (int r = mine.first; r < mine.last; ++r) std::memcpy(b_.logits + static_cast<size_t>(r) * n, row(op.in0, r), sizeof(float) * n);
  }

  void keep(const kh_op& op) {
    if (!b_.kept) return;
    const Share mine = rows_of(op.in0);
    const int n = width(op.in0);
    for (int r = mine.first; r < mine.last; ++r) std::memcpy(b_.kept + static_cast<size_t>(r) * n, row(op.in0, r), sizeof(float) * n);
  }

  void kept(const kh_op& op) {
    const Share mine = rows_of(op.out);
    const int n = width(op.out);
    for (int r = mine.first; r < mine.last; ++r) std::memcpy(row(op.out, r), b_.kept + static_cast<size_t>(r) * n, sizeof(float) * n);
  }

  void join(const kh_op& op) {
    const Share mine = rows_of(op.out);
    const int n = width(op.in0);
    for (int r = mine.first; r < mine.last; ++r) {
      std::memcpy(row(op.out, r), row(op.in0, r), sizeof(float) * n);
      std::memcpy(row(op.out, r) + n, row(op.in1, r), sizeof(float) * width(op.in1));
    }
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
  const bool alike = model->kernels.precise;
  model->packed_kinds.sort(alike ? nullptr : batch->answers, batch->num_rows);
  model->wanted_kinds.sort(alike ? nullptr : batch->drawn, batch->num_wanted);
  model->turn_to(*std::max_element(batch->positions, batch->positions + batch->num_rows));
  const bool rough = kh::shall_be_rough(*model, *batch);
  Run run{*model, cache, *batch};
  model->pool.run(run_thread, &run);
  if (rough) kh::note_refined(*model, *batch);
  return rough ? KH_ROUGH : KH_OK;
}
