// Dealing the pieces of a training step's operations out to threads. Who works on a piece never changes what comes out of it.

#include <algorithm>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

#include "deal.h"
#include "kernels.h"
#include "model.h"
#include "pool.h"
#include "train.h"

namespace kh {

namespace {

constexpr size_t kLeftBytes = 1 << 20;  // left panels of one piece of a product: half a second-level cache
constexpr int kPiecesAThread = 2;
constexpr int kRowsOfPiece = 32;        // rows of small operations that are taken at once

const TrainKernels& kernels_now() {
  const std::string_view name(chosen()->name);
  const TrainKernels* found = nullptr;
  if (name == "amx") found = train_amx();
  if (!found && (name == "amx" || name == "avx512")) found = train_avx512();
  if (name == "avxvnni" || name == "avx2") found = train_avx2();
  return found ? *found : *train_scalar();
}

}  // namespace

}  // namespace kh

struct kh_team {
  explicit kh_team(int threads) : pool(threads), own(static_cast<size_t>(pool.threads())) {}

  // Memory that is kept from call to call; what it held is lost when it grows.
  static uint8_t* at_least(Memory& memory, size_t bytes) {
    if (memory.bytes() < bytes) {
      memory = Memory();
      memory = Memory(bytes + bytes / 8);
    }
    return memory.data();
  }

  // work(piece, thread) for all pieces, `most` at a time, on all threads.
  template <typename Work>
  void deal(int pieces, int most, const Work& work) {
    kh::Deal dealt(pool.threads());
    for (int thread = 0; thread < pool.threads(); ++thread) dealt.begin(thread, kh::share_of(pieces, most, thread, pool.threads()));
    struct Call {
      kh_team& team;
      kh::Deal& dealt;
      const Work& work;
      const kh::TrainKernels& kernels;
      int most;
    } call{*this, dealt, work, kh::kernels_now(), most};
    pool.run(
        [](void* context, int thread) {
          Call& c = *static_cast<Call*>(context);
          c.kernels.begin();
          for (kh::Share share; c.dealt.take(thread, c.most, share);) c.work(c.kernels, share, thread);
          c.kernels.end();
        },
        &call);
  }

  kh::Pool pool;
  std::vector<Memory> own;  // of each thread
  Memory shared;
};

namespace kh {

namespace {

bool sound(const kh_side& side) { return side.data && (side.row == 1 || side.deep == 1) && (side.type == KH_BFLOAT16 || side.type == KH_FLOAT32); }

void multiply(kh_team& team, const kh_product& p) {
  const size_t steps = panels_of(p.k);
  const int columns = panels_of(p.n), pairs = panels_of(p.m), threads = team.pool.threads();
  auto* right = reinterpret_cast<uint16_t*>(kh_team::at_least(team.shared, columns * steps * kPair * 2));
  team.deal(columns, 1, [&](const TrainKernels& kernels, Share share, int) {
    for (int c = share.first; c < share.last; ++c) kernels.pack(p.right, c * kSide, std::min(kSide, p.n - c * kSide), p.k, true, right + c * steps * kPair);
  });
  // Every piece reads all right panels anew: as few pieces as keep the threads busy, and all of one size.
  const int fit = std::max(1, static_cast<int>(kLeftBytes / (steps * kPair * 2))), needed = (pairs + fit - 1) / fit, turns = threads * kPiecesAThread;
  const int wanted = std::min(pairs, (needed + turns - 1) / turns * turns), most = (pairs + wanted - 1) / wanted, pieces = (pairs + most - 1) / most;
  const size_t left_bytes = most * steps * kPair * 2 + 4096, bytes = left_bytes + (most + 1) * kPair * 4;
  for (Memory& memory : team.own) kh_team::at_least(memory, bytes);
  team.deal(pieces, 1, [&](const TrainKernels& kernels, Share share, int thread) {
    uint8_t* memory = team.own[thread].data();
    for (int piece = share.first; piece < share.last; ++piece) {
      const int first = piece * most * kSide, rows = std::min(most * kSide, p.m - first);
      kernels.product(p, first, rows, right, reinterpret_cast<uint16_t*>(memory), reinterpret_cast<float*>(memory + left_bytes));
    }
  });
}

// Panels of every head, in shared memory.
struct Packed {
  AttentionPlan plan;
  std::vector<int32_t> first_panel;
  int most_panels = 0;

  Packed(kh_team& team, const kh_attention& t, bool back) {
    for (int s = 0; s <= t.num_sequences; ++s) {
      const int panels = s ? panels_of(t.starts[s] - t.starts[s - 1]) : 0;
      first_panel.push_back(s ? first_panel.back() + panels : 0);
      most_panels = std::max(most_panels, panels);
    }
    plan.first_panel = first_panel.data();
    plan.key_panels = panels_of(t.key_size);
    plan.value_panels = panels_of(t.value_size);
    const size_t of_head = static_cast<size_t>(first_panel.back()) * kPair * t.key_heads, rows = static_cast<size_t>(t.starts[t.num_sequences]) * t.heads;
    const size_t keys = of_head * plan.key_panels * 2, values = of_head * plan.value_panels * 2;
    const size_t shares = back ? rows * (t.key_size + t.value_size) * 4 : 0;
    uint8_t* memory = kh_team::at_least(team.shared, 2 * keys + 2 * values + shares);
    plan.keys = reinterpret_cast<uint16_t*>(memory);
    plan.keys_across = reinterpret_cast<uint16_t*>(memory + keys);
    plan.values = reinterpret_cast<uint16_t*>(memory + 2 * keys);
    plan.values_across = reinterpret_cast<uint16_t*>(memory + 2 * keys + values);
    plan.key_shares = reinterpret_cast<float*>(memory + 2 * keys + 2 * values);
    plan.value_shares = plan.key_shares + rows * t.key_size;
    team.deal(t.num_sequences * t.key_heads, 1, [&](const TrainKernels& kernels, Share share, int) {
      for (int i = share.first; i < share.last; ++i) kernels.pack_head(t, plan, i / t.key_heads, i % t.key_heads, back);
    });
  }
};

void attend(kh_team& team, const kh_attention& t) {
  const Packed packed(team, t, false);
  struct Piece {
    int sequence, head, first, last;
  };
  std::vector<Piece> pieces;
  for (int s = 0; s < t.num_sequences; ++s)
    for (int head = 0; head < t.heads; ++head) {
      const int panels = packed.first_panel[s + 1] - packed.first_panel[s];
      for (int first = 0; first < panels; first += 2 * kTogether) pieces.push_back({s, head, first, std::min(first + 2 * kTogether, panels)});
    }
  for (Memory& memory : team.own) kh_team::at_least(memory, attend_bytes(t));
  team.deal(static_cast<int>(pieces.size()), 1, [&](const TrainKernels& kernels, Share share, int thread) {
    for (int i = share.first; i < share.last; ++i)
      kernels.attend(t, packed.plan, pieces[i].sequence, pieces[i].head, pieces[i].first, pieces[i].last, team.own[thread].data());
  });
}

void attend_back(kh_team& team, const kh_attention& t) {
  const Packed packed(team, t, true);
  const size_t bytes = attend_back_bytes(t, packed.most_panels);
  for (Memory& memory : team.own) kh_team::at_least(memory, bytes);
  team.deal(t.num_sequences * t.heads, 1, [&](const TrainKernels& kernels, Share share, int thread) {
    for (int i = share.first; i < share.last; ++i) kernels.attend_back(t, packed.plan, i / t.heads, i % t.heads, team.own[thread].data());
  });
  team.deal(t.starts[t.num_sequences], kRowsOfPiece, [&](const TrainKernels& kernels, Share share, int) { kernels.sum_heads(t, packed.plan, share.first, share.last); });
}

bool sound(const kh_attention& t) {
  if (t.num_sequences < 0 || t.key_heads < 1 || t.heads < 1 || t.heads % t.key_heads || t.key_size < 1 || t.value_size < 1 || !(t.scale > 0) || t.window < 0) return false;
  for (int s = 0; s < t.num_sequences; ++s)
    if (t.starts[s + 1] < t.starts[s]) return false;
  return t.starts[0] == 0;
}

// Rows that are independent of each other.
int32_t each_row(kh_team* team, const kh_rows* rows, void (*TrainKernels::*work)(const kh_rows&, int, int)) try {
  if (!team || !rows || rows->rows < 0 || rows->columns < 1) return KH_BAD_ARGUMENT;
  team->deal(rows->rows, kRowsOfPiece, [&](const TrainKernels& kernels, Share share, int) { (kernels.*work)(*rows, share.first, share.last); });
  return KH_OK;
} catch (const std::bad_alloc&) {
  return KH_NO_MEMORY;
}

}  // namespace

}  // namespace kh

extern "C" {

kh_team* kh_team_new(int32_t threads) try {
  return new kh_team(threads);
} catch (const std::exception&) {
  return nullptr;
}

void kh_team_free(kh_team* team) { delete team; }

int32_t kh_train_product(kh_team* team, const kh_product* p) try {
  if (!team || !p || p->m < 0 || p->n < 0 || p->k < 1 || !kh::sound(p->left) || !kh::sound(p->right)) return KH_BAD_ARGUMENT;
  if (p->finish == KH_ADD_TO && p->out_type != KH_FLOAT32) return KH_BAD_ARGUMENT;
  if (p->m && p->n) kh::multiply(*team, *p);
  return KH_OK;
} catch (const std::bad_alloc&) {
  return KH_NO_MEMORY;
}

int32_t kh_train_attend(kh_team* team, const kh_attention* t) try {
  if (!team || !t || !kh::sound(*t)) return KH_BAD_ARGUMENT;
  kh::attend(*team, *t);
  return KH_OK;
} catch (const std::bad_alloc&) {
  return KH_NO_MEMORY;
}

int32_t kh_train_attend_back(kh_team* team, const kh_attention* t) try {
  if (!team || !t || !kh::sound(*t)) return KH_BAD_ARGUMENT;
  kh::attend_back(*team, *t);
  return KH_OK;
} catch (const std::bad_alloc&) {
  return KH_NO_MEMORY;
}

int32_t kh_train_norm(kh_team* team, const kh_rows* rows) { return kh::each_row(team, rows, &kh::TrainKernels::norm); }
int32_t kh_train_gate(kh_team* team, const kh_rows* rows) { return kh::each_row(team, rows, &kh::TrainKernels::gate); }
int32_t kh_train_gate_back(kh_team* team, const kh_rows* rows) { return kh::each_row(team, rows, &kh::TrainKernels::gate_back); }
int32_t kh_train_rotate(kh_team* team, const kh_rows* rows) {
  if (rows && (rows->heads < 1 || rows->half < 0 || 2 * rows->half > rows->columns)) return KH_BAD_ARGUMENT;
  return kh::each_row(team, rows, &kh::TrainKernels::rotate);
}

int32_t kh_train_norm_back(kh_team* team, const kh_rows* rows) try {
  if (!team || !rows || rows->rows < 0 || rows->columns < 1) return KH_BAD_ARGUMENT;
  const int blocks = (rows->rows + kh::kNormRows - 1) / kh::kNormRows;
  const size_t stride = (static_cast<size_t>(rows->columns) + 15) / 16 * 16;
  auto* shares = reinterpret_cast<float*>(kh_team::at_least(team->shared, (blocks * stride + 16) * 4));
  team->deal(blocks, 1, [&](const kh::TrainKernels& kernels, kh::Share share, int) {
    for (int b = share.first; b < share.last; ++b)
      kernels.norm_back(*rows, b * kh::kNormRows, std::min(rows->rows, (b + 1) * kh::kNormRows), shares + b * stride);
  });
  std::fill_n(rows->weight_gradient, rows->columns, 0.0f);
  for (int b = 0; b < blocks; ++b)
    for (int c = 0; c < rows->columns; ++c) rows->weight_gradient[c] += shares[b * stride + c];
  return KH_OK;
} catch (const std::bad_alloc&) {
  return KH_NO_MEMORY;
}

}  // extern "C"
