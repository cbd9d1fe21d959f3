// A product for each head: its own inputs of a row times its own matrix, all matrices one below the other.
#pragma once

#include "model.h"

namespace kh {

// One thread's walk through KH_HEAD_LINEAR; threads take heads from each other.
class HeadWalk {
 public:
  HeadWalk(kh_model& model, const kh_batch& batch, const kh_op& op, int thread);
  void walk();

 private:
  float* row(int slot, int r) const { return model_.slots[slot] + static_cast<size_t>(r) * model_.slot_stride[slot]; }
  void multiply(int head);
  void multiply_few(const kh_weight& own, const float* x, Epilogue& end);
  void multiply_many(const kh_weight& own, const float* x, Epilogue& end);

  kh_model& model_;
  const kh_op& op_;
  const kh_weight& tall_;
  const RowKinds& kinds_;
  const int rows_, thread_, threads_;
  const int heads_, inputs_, outputs_, tail_;  // the last three of a head
};

}  // namespace kh
