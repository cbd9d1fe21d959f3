#include "experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ahead.h"

namespace kh {

namespace {

// The place of the greatest that is left; the first of those that are left where none is a number.
int take_greatest(float* worth, const uint8_t* out, int count) {
  int best = -1;
  for (int i = 0; i < count; ++i)
    if (!out[i] && (best < 0 || worth[i] > worth[best])) best = i;
  return best;
}

float two_best(const float* worth, int count) {
  float first = -INFINITY, second = -INFINITY;
  for (int i = 0; i < count; ++i)
    if (worth[i] > first) {
      second = first;
      first = worth[i];
    } else {
      second = std::max(second, worth[i]);
    }
  return count > 1 ? first + second : first;
}

void to_scores(const kh_op& op, const float* logits, int count, float* scores) {
  if (op.arg[3] & KH_SIGMOID_SCORES) {
    for (int i = 0; i < count; ++i) scores[i] = 1.0f / (1.0f + std::exp(-logits[i]));
    return;
  }
  const float greatest = *std::max_element(logits, logits + count);
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += scores[i] = std::exp(logits[i] - greatest);
  for (int i = 0; i < count; ++i) scores[i] /= sum;
}

}  // namespace

void route_row(const kh_op& op, const float* logits, int count, const float* bias, float* memory, float* out) {
  const int chosen = op.arg[0], groups = op.arg[1], kept = op.arg[2], size = count / groups;
  float *scores = memory, *worth = memory + count, *groups_worth = worth + count;
  uint8_t* gone = reinterpret_cast<uint8_t*>(groups_worth + groups);
  uint8_t* groups_kept = gone + count;
  to_scores(op, logits, count, scores);
  for (int i = 0; i < count; ++i) worth[i] = scores[i] + (bias ? bias[i] : 0.0f);
  std::fill(gone, gone + count, static_cast<uint8_t>(kept < groups));
  if (kept < groups) {
    std::fill(groups_kept, groups_kept + groups, uint8_t{0});
    for (int g = 0; g < groups; ++g) groups_worth[g] = two_best(worth + g * size, size);
    for (int i = 0; i < kept; ++i) {
      const int g = take_greatest(groups_worth, groups_kept, groups);
      groups_kept[g] = 1;
      std::fill(gone + g * size, gone + (g + 1) * size, uint8_t{0});
    }
  }
  float sum = 0;
  for (int i = 0; i < chosen; ++i) {
    const int expert = take_greatest(worth, gone, count);
    gone[expert] = 1;
    out[i] = static_cast<float>(expert);
    sum += out[chosen + i] = scores[expert];
  }
  const float turn = op.f[1] / (op.arg[3] & KH_NORMALISED ? std::max(sum, op.f[0]) : 1.0f);
  for (int i = 0; i < chosen; ++i) out[chosen + i] *= turn;
}

ExpertWalk::ExpertWalk(kh_model& model, const kh_batch& batch, const kh_op& op, int thread)
    : model_(model),
      batch_(batch),
      op_(op),
      gate_up_(model.weights[op.w0]),
      down_(model.weights[op.w1]),
      room_(model.experts),
      kinds_(model.slot_wanted[op.in0] ? model.wanted_kinds : model.packed_kinds),
      thread_(thread),
      threads_(model.pool.threads()),
      experts_(op.arg[0]),
      chosen_(op.arg[1]),
      hidden_(gate_up_.k),
      width_(gate_up_.n / op.arg[0] / 2) {}

void ExpertWalk::walk() {
  if (kinds_.few + kinds_.many == 0) return;  // the same on all threads, so nobody waits at a barrier below
  if (thread_ == 0) {
    sort();
    if (model_.streams) read_chosen();
  }
  model_.pool.barrier();
  for (const bool inner : {false, true}) {
    pack(inner);
    const int pieces = static_cast<int>(room_.parts.size()) * ((inner ? hidden_ : 2 * width_) / kStrip);
    model_.deal.begin(thread_, share(pieces));
    model_.pool.barrier();
    multiply(inner);
    model_.pool.barrier();
  }
  add_up();
}

Share ExpertWalk::share(int count) const { return share_of(count, 1, thread_, threads_); }

// Every pair of a row and an expert gets a place; the rows of one expert and one kind lie together, from a multiple of sixteen on.
void ExpertWalk::sort() {
  std::vector<int32_t>& counts = room_.counts;
  std::fill(counts.begin(), counts.end(), 0);
  const int rows = kinds_.few + kinds_.many;
  const auto group_of = [&](int place, int c) {
    return 2 * static_cast<int>(row(op_.in1, kinds_.order[place])[c]) + (place >= kinds_.few);
  };
  for (int place = 0; place < rows; ++place)
    for (int c = 0; c < chosen_; ++c) ++counts[group_of(place, c)];
  room_.parts.clear();
  int at = 0;
  for (int group = 0; group < 2 * experts_; ++group) {
    const int count = counts[group];
    if (count) room_.parts.push_back({group / 2, group % 2 == 1, at, count});
    counts[group] = at;
    at += (count + kFewRows - 1) / kFewRows * kFewRows;
  }
  room_.blocks = at / kFewRows;
  for (int place = 0; place < rows; ++place)
    for (int c = 0; c < chosen_; ++c) {
      const int r = kinds_.order[place], here = counts[group_of(place, c)]++;
      room_.row_of[here] = r;
      room_.place_of[static_cast<size_t>(r) * chosen_ + c] = here;
    }
}

// What was chosen is known before any of it is needed: all of it is asked for at once.
void ExpertWalk::read_chosen() const {
  for (const kh_weight* tall : {&gate_up_, &down_}) {
    const size_t bytes = kh_packed_bytes(tall) / static_cast<size_t>(experts_);
    for (const ExpertRows& part : room_.parts) read_ahead(tall->data + bytes * static_cast<size_t>(part.expert), bytes);
  }
}

// The operand whose first row is a place that is a multiple of sixteen.
Operand ExpertWalk::operand_of(int place, int k_pad) const {
  Operand whole = room_.operand;
  whole.k_pad = k_pad;
  Operand here = whole.block(place / kFewRows);
  here.tiles += static_cast<size_t>(place) * k_pad;
  return here;
}

// Sixteen places at a time become inputs: of the rows that came in, or of what the gates let through.
void ExpertWalk::pack(bool inner) {
  const kh_weight& weight = inner ? down_ : gate_up_;
  const Share mine = share(room_.blocks);
  for (const ExpertRows& part : room_.parts)
    for (int at = 0; at < part.count; at += kFewRows) {
      const int place = part.first + at, block = place / kFewRows, count = std::min(kFewRows, part.count - at);
      if (block < mine.first || block >= mine.last) continue;
      const float* x = room_.inner + static_cast<size_t>(place) * room_.inner_stride;
      int stride = room_.inner_stride;
      if (!inner) {
        float* gathered = room_.gathered[thread_];
        for (int i = 0; i < count; ++i)
          std::memcpy(gathered + static_cast<size_t>(i) * hidden_, row(op_.in0, room_.row_of[place + i]), sizeof(float) * hidden_);
        x = gathered;
        stride = hidden_;
      }
      Operand operand = operand_of(place, weight.k_pad);
      operand.rows = count;
      const Part all{0, count, 0, weight.k_pad};
      if (part.many)
        model_.kernels.to_tiles(x, stride, weight.k, Norm{}, operand, all);
      else
        (weight.bits == 16 ? model_.kernels.to_rows16 : model_.kernels.to_int8)(x, stride, weight.k, Norm{}, operand, all);
    }
}

// Threads take strip pairs of all chosen experts from each other.
void ExpertWalk::multiply(bool inner) {
  const kh_weight& tall = inner ? down_ : gate_up_;
  const int outputs = inner ? hidden_ : 2 * width_, pairs = outputs / kStrip;
  const int pieces = static_cast<int>(room_.parts.size()) * pairs;
  const int most = pairs_at_a_time(pieces / threads_, kinds_.many > 0);
  for (Share taken; model_.deal.take(thread_, most, taken);)
    for (int piece = taken.first; piece < taken.last;) {
      const int number = piece / pairs, first = piece % pairs, last = std::min(pairs, first + taken.last - piece);
      multiply_run(room_.parts[number], tall, outputs, {first, last}, inner);
      piece += last - first;
    }
}

void ExpertWalk::multiply_run(const ExpertRows& rows, const kh_weight& tall, int outputs, Share pairs, bool inner) {
  kh_weight own = tall;
  own.n = own.n_pad = outputs;
  own.data += static_cast<size_t>(rows.expert) * (outputs / kStrip) * (tall.k_pad / kDeep) * 2 * tall.tile_bytes;
  Epilogue end;
  end.gated = !inner;
  end.n = outputs;
  end.out_stride = inner ? room_.out_stride : room_.inner_stride;
  end.out = inner ? room_.out : room_.inner;
  Scratch& scratch = model_.scratch[thread_];
  if (rows.many) {
    Operand operand = operand_of(rows.first, tall.k_pad);
    operand.rows = rows.count;
    end.rows = room_.same.data() + rows.first;
    model_.kernels.many(own, operand, pairs.first, pairs.last, end, scratch);
    return;
  }
  const int most = model_.kernels.few_blocks * kFewRows;
  for (int at = 0; at < rows.count; at += most) {
    Operand operand = operand_of(rows.first + at, tall.k_pad);
    operand.rows = std::min(most, rows.count - at);
    end.rows = room_.same.data() + rows.first + at;
    model_.kernels.few(own, operand, pairs.first, pairs.last, end, scratch);
  }
}

// In the order in which the router chose, which is the same whatever else is in the step.
void ExpertWalk::add_up() {
  const Share mine = share(kinds_.few + kinds_.many);
  for (int r = mine.first; r < mine.last; ++r) {
    float* y = row(op_.out, r);
    const float* shares = row(op_.in1, r) + chosen_;
    std::fill(y, y + hidden_, 0.0f);
    for (int c = 0; c < chosen_; ++c) {
      const float* from = room_.out + static_cast<size_t>(room_.place_of[static_cast<size_t>(r) * chosen_ + c]) * room_.out_stride;
      for (int i = 0; i < hidden_; ++i) y[i] += shares[c] * from[i];
    }
  }
}

}  // namespace kh
