#include "heads.h"

#include <algorithm>
#include <cstring>

namespace kh {

HeadWalk::HeadWalk(kh_model& model, const kh_batch& batch, const kh_op& op, int thread)
    : model_(model),
      op_(op),
      tall_(model.weights[op.w0]),
      kinds_(model.slot_wanted[op.in0] ? model.wanted_kinds : model.packed_kinds),
      rows_(model.slot_wanted[op.in0] ? batch.num_wanted : batch.num_rows),
      thread_(thread),
      threads_(model.pool.threads()),
      heads_(op.arg[0]),
      inputs_(tall_.k),
      outputs_(op.arg[1]),
      tail_(op.in1 < 0 ? 0 : model.slot_width[op.in1] / op.arg[0]) {}

void HeadWalk::walk() {
  model_.deal.begin(thread_, share_of(heads_, 1, thread_, threads_));
  for (Share taken; model_.deal.take(thread_, 1, taken);) multiply(taken.first);
}

void HeadWalk::multiply(int head) {
  kh_weight own = tall_;
  own.n_pad = tall_.n_pad / heads_;
  own.n = outputs_;
  own.data += static_cast<size_t>(head) * (own.n_pad / kStrip) * (own.k_pad / kDeep) * 2 * own.tile_bytes;
  const int place = head * (outputs_ + tail_);
  Epilogue end;
  end.n = outputs_;
  end.out = model_.slots[op_.out] + place;
  end.out_stride = model_.slot_stride[op_.out];
  const float* x = model_.slots[op_.in0] + head * inputs_;
  if (kinds_.few) multiply_few(own, x, end);
  if (kinds_.many) multiply_many(own, x, end);
  for (int r = 0; r < rows_ && tail_; ++r)
    std::memcpy(row(op_.out, r) + place + outputs_, row(op_.in1, r) + head * tail_, sizeof(float) * tail_);
}

// As many blocks of int8 rows at a time as a kernel takes; each is made before it is multiplied.
void HeadWalk::multiply_few(const kh_weight& own, const float* x, Epilogue& end) {
  const Kernels& k = model_.kernels;
  const ToForm to_form = own.bits == 16 ? k.to_rows16 : k.to_int8;
  const int most = k.few_blocks * kFewRows;
  for (int at = 0; at < kinds_.few; at += most) {
    Operand operand = model_.of_head[thread_];
    operand.k_pad = own.k_pad;
    operand.rows = std::min(most, kinds_.few - at);
    end.rows = kinds_.few_rows() + at;
    for (int first = 0; first < operand.rows; first += kFewRows) {
      Operand block = operand.block(first / kFewRows);
      pack_runs(x, model_.slot_stride[op_.in0], inputs_, Norm{}, block, end.rows + first, {0, block.rows}, {0, own.k_pad}, to_form);
    }
    k.few(own, operand, 0, own.n_pad / kStrip, end, model_.scratch[thread_]);
  }
}

void HeadWalk::multiply_many(const kh_weight& own, const float* x, Epilogue& end) {
  Operand operand = model_.of_head[thread_];
  operand.k_pad = own.k_pad;
  operand.rows = kinds_.many;
  end.rows = kinds_.many_rows();
  pack_runs(x, model_.slot_stride[op_.in0], inputs_, Norm{}, operand, end.rows, {0, kinds_.many}, {0, own.k_pad}, model_.kernels.to_tiles);
  model_.kernels.many(own, operand, 0, own.n_pad / kStrip, end, model_.scratch[thread_]);
}

}  // namespace kh
