// Mixtures of experts: each row of a step is multiplied by the matrices of a few of many experts.
//
// Rows are sorted by expert, those of answers and those of prompts apart: within an expert each kind is multiplied in its own form, as in any
// product, so a row's numbers do not depend on what else an expert was chosen for.
#pragma once

#include <vector>

#include "model.h"

namespace kh {

// KH_ROUTE for one row: `logits` of `count` experts to op.arg0 ids and as many shares. `memory` is 16 bytes an expert.
void route_row(const kh_op& op, const float* logits, int count, const float* bias, float* memory, float* out);

// One thread's walk through KH_EXPERTS; all threads make the same calls.
class ExpertWalk {
 public:
  ExpertWalk(kh_model& model, const kh_batch& batch, const kh_op& op, int thread);
  void walk();

 private:
  Share share(int count) const;
  float* row(int slot, int r) const { return model_.slots[slot] + static_cast<size_t>(r) * model_.slot_stride[slot]; }
  void sort();
  void read_chosen() const;
  void pack(bool inner);
  void multiply(bool inner);
  void multiply_run(const ExpertRows& rows, const kh_weight& tall, int outputs, Share pairs, bool inner);
  void add_up();
  Operand operand_of(int place, int k_pad) const;

  kh_model& model_;
  const kh_batch& batch_;
  const kh_op& op_;
  const kh_weight &gate_up_, &down_;
  ExpertRoom& room_;
  const RowKinds& kinds_;
  const int thread_, threads_;
  const int experts_, chosen_, hidden_, width_;
};

}  // namespace kh
