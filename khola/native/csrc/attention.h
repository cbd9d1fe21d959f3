// Attention: what one thread writes to the pages of a cache and reads from them.
#pragma once

#include "model.h"

namespace kh {

// `heads` neighbouring heads of a row, turned by its position.
void turn_row(const kh_model& model, int rope, int position, float* x, int heads, int size);

// One thread's walk through an operation on the cache; all threads make the same calls.
class AttentionWalk {
 public:
  AttentionWalk(kh_model& model, const kh_cache& cache, const kh_batch& batch, int thread)
      : m_(model), cache_(cache), b_(batch), k_(model.kernels), thread_(thread), threads_(model.pool.threads()) {}

  void rotate_store(const kh_op& op);
  void attend(const kh_op& op, bool stores);
  void attend_latent(const kh_op& op);

 private:
  // One attention: what it works on, and how its work is cut. Work is counted in blocks of keys, and every thread has one run of it.
  struct Attention {
    const kh_op& op;
    const LayerPlanes& planes;
    int parts;      // that the query heads of a key head are cut into, each as many as a kernel takes at once
    int group = 1;  // query heads of a part
    int block = 1;  // rows of a task
    int64_t blocks = 0, tasks = 0;
    bool tears = false;  // a task may belong to two threads
  };

  struct Piece {
    int sequence, row, rows, head;
    int first, blocks;  // blocks of keys
    int64_t at;         // blocks of keys of all tasks before
  };

  float* row(int slot, int r) const { return m_.slots[slot] + static_cast<size_t>(r) * m_.slot_stride[slot]; }
  LayerPlanes planes_of(int layer) const;
  int sequence_of(int r) const;
  void store(int layer, int r, const float* k, const float* v);
  Share pair_rows() const;
  int past_pair(int r) const;
  void read(const kh_op& op, const LayerPlanes& planes);
  template <typename Function>
  void for_tasks(const Attention& all, Function function) const;
  int64_t first_block(const Attention& all, int thread) const { return all.blocks * thread / threads_; }
  int owner(const Attention& all, int64_t block) const;
  bool attend_piece(const Attention& all, const Piece& piece);
  void join_piece(const Attention& all, const Piece& piece);
  AttendTask task_of(const Attention& all, const Piece& piece) const;

  kh_model& m_;
  const kh_cache& cache_;
  const kh_batch& b_;
  const Kernels& k_;
  const int thread_, threads_;
};

}  // namespace kh
