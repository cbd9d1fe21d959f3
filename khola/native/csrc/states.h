// Operations over states: what a layer keeps of a sequence instead of its tokens.
//
// Every head of a state, and every panel of its columns, is scanned by one thread over all new rows of its sequence, in order: a row's numbers
// depend neither on how its sequence was cut into steps nor on threads.
#pragma once

#include "model.h"
#include "scan.h"

namespace kh {

// Whether the state slots of a step are there, fit the program, and are not written while they are read.
bool sound_states(const kh_model& model, const kh_cache* cache, const kh_batch& batch);

// Memory that an operation wants of each thread, in bytes.
size_t state_scratch(const kh_model& model, const kh_op& op);

// One thread's walk through an operation from KH_DECAY_SCAN on; all threads make the same calls.
class StateWalk {
 public:
  StateWalk(kh_model& model, const kh_cache* cache, const kh_batch& batch, const kh_op& op, int thread);
  void walk();

 private:
  float* row(int slot, int r) const { return model_.slots[slot] + static_cast<size_t>(r) * model_.slot_stride[slot]; }
  int width(int slot) const { return model_.slot_width[slot]; }
  Share rows() const;
  void scan();
  void scan_head(int sequence, int head, int column);
  void log_decay();
  void convolve();
  void convolve_row(int sequence, int r, int column, int columns);
  void keep_tail(int sequence);
  const float* input(int sequence, int r) const;
  void scale();

  kh_model& model_;
  const kh_cache* cache_;
  const kh_batch& batch_;
  const kh_op& op_;
  const int thread_, threads_;
};

}  // namespace kh
