#include "attention.h"

#include <algorithm>
#include <cstring>

namespace kh {

namespace {

constexpr int kFolded = 32;     // rows times query heads that a kernel takes at once
constexpr int kManyTasks = 16;  // of a thread: no need to tear one

}  // namespace

void turn_row(const kh_model& model, int rope, int position, float* x, int heads, int size) {
  const int half = model.ropes[rope].half;
  const float* table = model.turns[rope] + static_cast<size_t>(position) * 2 * half;
  model.kernels.rotate(x, heads, size, table, table + half, half);
}

int AttentionWalk::sequence_of(int r) const {
  return static_cast<int>(std::upper_bound(b_.starts, b_.starts + b_.num_sequences + 1, r) - b_.starts) - 1;
}

// Pages of the cache, and how this model's keys are made codes.
LayerPlanes AttentionWalk::planes_of(int layer) const {
  LayerPlanes planes = cache_.layers[layer];
  if (!m_.key_steps[layer].empty()) planes.key_steps = m_.key_steps[layer].data();
  return planes;
}

void AttentionWalk::store(int layer, int r, const float* k, const float* v) {
  const int position = b_.positions[r];
  const int32_t page = b_.pages[static_cast<size_t>(sequence_of(r)) * b_.page_stride + position / KH_PAGE];
  k_.store(planes_of(layer), k, v, page, position % KH_PAGE);
}

void AttentionWalk::rotate_store(const kh_op& op) {
  const int size = op.arg[1], heads = op.arg[2], key_heads = op.arg[3];
  // Two tokens of a pair share a dword of the value page: whole pairs to one thread, so that no two write the same one.
  const Share mine = pair_rows();
  for (int r = mine.first; r < mine.last; ++r) {
    float* qkv = row(op.in0, r);
    turn_row(m_, op.w1, b_.positions[r], qkv, heads + key_heads, size);
    std::memcpy(row(op.out, r), qkv, sizeof(float) * heads * size);
    store(op.arg[0], r, qkv + heads * size, qkv + (heads + key_heads) * size);
  }
}

// This thread's rows, cut where a pair of tokens of one sequence is not torn apart.
Share AttentionWalk::pair_rows() const {
  Share mine = share_of(b_.num_rows, 1, thread_, threads_);
  mine.first = past_pair(mine.first);
  mine.last = past_pair(mine.last);
  return mine;
}

int AttentionWalk::past_pair(int r) const {
  const bool torn = r > 0 && r < b_.num_rows && b_.positions[r] % 2 == 1 && b_.positions[r - 1] == b_.positions[r] - 1;
  return torn ? r + 1 : r;
}

void AttentionWalk::attend(const kh_op& op, bool stores) {
  const int layer = op.arg[0];
  const LayerPlanes planes = planes_of(layer);
  if (stores) {
    const Share mine = pair_rows();
    for (int r = mine.first; r < mine.last; ++r) store(layer, r, row(op.in1, r), row(op.in2, r));
    m_.pool.barrier();
  }
  read(op, planes);
}

// The rows of `in0` look at what is in the cache by now.
void AttentionWalk::read(const kh_op& op, const LayerPlanes& planes) {
  const int heads = m_.slot_width[op.in0] / planes.key_size / planes.heads;
  Attention all{op, planes, heads % kFolded ? 1 : heads / kFolded};
  all.group = heads / all.parts;
  all.block = std::max(1, kFolded / all.group);
  // Long tasks cannot be torn: only where there are enough of them.
  if (planes.values_in_keys && b_.num_rows >= kFoldsTogether * all.block * kManyTasks * threads_) all.block *= kFoldsTogether;
  for_tasks(all, [&](const Piece& piece) { all.blocks += piece.blocks, ++all.tasks; });
  all.tears = k_.part_floats && all.group <= kFolded && all.tasks < kManyTasks * threads_ && all.block * all.group <= kFolded;
  bool torn = false;
  for_tasks(all, [&](const Piece& piece) { torn |= attend_piece(all, piece); });
  if (!torn) return;
  m_.pool.barrier();
  for_tasks(all, [&](const Piece& piece) { join_piece(all, piece); });
}

template <typename Function>
void AttentionWalk::for_tasks(const Attention& all, Function function) const {
  int64_t at = 0;
  for (int s = 0; s < b_.num_sequences; ++s)
    for (int row = b_.starts[s]; row < b_.starts[s + 1]; row += all.block) {
      const int rows = std::min(all.block, b_.starts[s + 1] - row), position = b_.positions[row], window = all.op.arg[2];
      const int first = window ? std::max(0, position - window + 1) / kKeyBlock : 0;
      const int blocks = (position + rows - 1) / kKeyBlock + 1 - first;
      for (int head = 0; head < all.planes.heads * all.parts; ++head, at += blocks) function(Piece{s, row, rows, head, first, blocks, at});
    }
}

int AttentionWalk::owner(const Attention& all, int64_t block) const {
  int thread = 0;
  while (first_block(all, thread + 1) <= block) ++thread;
  return thread;
}

// Does this thread's share of a task; says whether the task is torn.
bool AttentionWalk::attend_piece(const Attention& all, const Piece& piece) {
  const int first = owner(all, piece.at), last = all.tears ? owner(all, piece.at + piece.blocks - 1) : first;
  AttendTask task = task_of(all, piece);
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

void AttentionWalk::join_piece(const Attention& all, const Piece& piece) {
  const int first = owner(all, piece.at);
  if (first != thread_ || owner(all, piece.at + piece.blocks - 1) == first) return;
  AttendTask task = task_of(all, piece);
  task.block0 = piece.first;
  task.block1 = piece.first + piece.blocks;
  task.parts = m_.parts[first];
  task.joins = true;
  k_.attend(all.planes, task, m_.scratch[thread_]);
}

AttendTask AttentionWalk::task_of(const Attention& all, const Piece& piece) const {
  const kh_op& op = all.op;
  AttendTask task;
  task.q = row(op.in0, piece.row) + piece.head * all.group * all.planes.key_size;
  task.out = row(op.out, piece.row) + piece.head * all.group * all.planes.value_size;
  task.q_stride = m_.slot_stride[op.in0];
  task.out_stride = m_.slot_stride[op.out];
  task.rows = piece.rows;
  task.group = all.group;
  task.position = b_.positions[piece.row];
  task.window = op.arg[2];
  task.scale = op.f[0];
  task.pages = b_.pages + static_cast<size_t>(piece.sequence) * b_.page_stride;
  task.key_head = piece.head / all.parts;
  return task;
}

// in1 is the latent of each row, in2 its turned key: in this order they are the key of the one key head, whose beginning is the value as well.
void AttentionWalk::attend_latent(const kh_op& op) {
  LayerPlanes planes = planes_of(op.arg[0]);
  const int latent = m_.slot_width[op.in1], turned = m_.slot_width[op.in2];
  float* kept = reinterpret_cast<float*>(m_.scratch[thread_].data);
  const Share mine = pair_rows();
  for (int r = mine.first; r < mine.last; ++r) {
    std::memcpy(kept, row(op.in1, r), sizeof(float) * latent);
    std::memcpy(kept + latent, row(op.in2, r), sizeof(float) * turned);
    store(op.arg[0], r, kept, nullptr);
  }
  m_.pool.barrier();
  planes.value_size = latent;
  planes.values_in_keys = true;
  read(op, planes);
}

}  // namespace kh
