#include "states.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kh {

namespace {

constexpr int kGateColumns = 256;  // of a convolution that are worked on at once

// Sizes of an operation's state, as the program has them.
struct Sizes {
  int heads = 0, key_heads = 0, keys = 0, values = 0, width = 0, taps = 1;
};

Sizes sizes_of(const kh_model& model, const kh_op& op) {
  Sizes s;
  if (op.op == KH_CAUSAL_CONV) {
    s.width = model.slot_width[op.out];
    s.taps = model.vectors[op.w0].n / s.width;
    return s;
  }
  s.heads = op.op == KH_DECAY_SCAN ? model.vectors[op.w0].n : model.slot_width[op.arg[1]];
  s.key_heads = op.op == KH_DECAY_SCAN ? s.heads : op.arg[3];
  s.keys = model.slot_width[op.in0] / s.key_heads;
  s.values = model.slot_width[op.out] / s.heads;
  return s;
}

bool keeps_state(const kh_op& op) { return op.op == KH_DECAY_SCAN || op.op == KH_DELTA_SCAN || op.op == KH_CAUSAL_CONV; }

bool fits(const kh_model& model, const kh_cache& cache, const kh_op& op) {
  if (op.arg[0] < 0 || op.arg[0] >= static_cast<int>(cache.states.size())) return false;
  const StatePlanes& p = cache.states[op.arg[0]];
  const Sizes s = sizes_of(model, op);
  if (op.op == KH_CAUSAL_CONV) return p.sizes.width == s.width && p.sizes.taps == s.taps;
  return p.sizes.heads == s.heads && p.sizes.key_size == s.keys && p.sizes.value_size == s.values;
}

bool sound_slots(const kh_cache& cache, const kh_batch& b) {
  for (int s = 0; s < b.num_sequences; ++s) {
    const int from = b.states[2 * s], to = b.states[2 * s + 1];
    const bool starts = b.lengths[s] == b.starts[s + 1] - b.starts[s];
    if (to < 0 || to >= cache.num_states || from < -1 || from >= cache.num_states || starts != (from < 0)) return false;
    for (int other = 0; other < b.num_sequences; ++other)
      if (to == b.states[2 * other] || (other != s && to == b.states[2 * other + 1])) return false;
  }
  return true;
}

}  // namespace

bool sound_states(const kh_model& model, const kh_cache* cache, const kh_batch& batch) {
  if (std::none_of(model.ops.begin(), model.ops.end(), keeps_state)) return true;
  if (!cache || !batch.states || !sound_slots(*cache, batch)) return false;
  return std::all_of(model.ops.begin(), model.ops.end(), [&](const kh_op& op) { return !keeps_state(op) || fits(model, *cache, op); });
}

size_t state_scratch(const kh_model& model, const kh_op& op) {
  return op.op == KH_DECAY_SCAN || op.op == KH_DELTA_SCAN ? sizeof(float) * scan_floats(sizes_of(model, op).keys) : 0;
}

StateWalk::StateWalk(kh_model& model, const kh_cache* cache, const kh_batch& batch, const kh_op& op, int thread)
    : model_(model), cache_(cache), batch_(batch), op_(op), thread_(thread), threads_(model.pool.threads()) {}

void StateWalk::walk() {
  switch (op_.op) {
    case KH_DECAY_SCAN:
    case KH_DELTA_SCAN: return scan();
    case KH_LOG_DECAY: return log_decay();
    case KH_CAUSAL_CONV: return convolve();
    case KH_SCALE: return scale();
  }
}

Share StateWalk::rows() const {
  return share_of(model_.slot_wanted[op_.out] ? batch_.num_wanted : batch_.num_rows, 1, thread_, threads_);
}

// Heads and panels take turns, so that the threads share every sequence evenly, be it a long prompt or one token.
void StateWalk::scan() {
  const Sizes s = sizes_of(model_, op_);
  int turn = 0;
  for (int sequence = 0; sequence < batch_.num_sequences; ++sequence)
    for (int head = 0; head < s.heads; ++head)
      for (int column = 0; column < s.values; column += kPanel)
        if (turn++ % threads_ == thread_) scan_head(sequence, head, column);
}

void StateWalk::scan_head(int sequence, int head, int column) {
  const Sizes s = sizes_of(model_, op_);
  const int first = batch_.starts[sequence], key_head = head / (s.heads / s.key_heads);
  const StatePlanes& planes = cache_->states[op_.arg[0]];
  ScanTask t;
  t.q = row(op_.in0, first) + key_head * s.keys;
  t.k = row(op_.in1, first) + key_head * s.keys;
  t.v = row(op_.in2, first) + head * s.values + column;
  t.out = row(op_.out, first) + head * s.values + column;
  t.q_stride = model_.slot_stride[op_.in0];
  t.k_stride = model_.slot_stride[op_.in1];
  t.v_stride = model_.slot_stride[op_.in2];
  t.out_stride = model_.slot_stride[op_.out];
  t.rows = batch_.starts[sequence + 1] - first;
  t.keys = s.keys;
  t.columns = std::min(kPanel, s.values - column);
  if (op_.op == KH_DECAY_SCAN) {
    t.decay = model_.vectors[op_.w0].weight[head];
  } else {
    t.log_decay = row(op_.arg[1], first) + head;
    t.share = row(op_.arg[2], first) + head;
    t.log_decay_stride = model_.slot_stride[op_.arg[1]];
    t.share_stride = model_.slot_stride[op_.arg[2]];
  }
  const size_t place = static_cast<size_t>(head) * s.keys * s.values + column;
  const int from = batch_.states[2 * sequence];
  t.from = from < 0 ? nullptr : planes.state(from) + place;
  t.to = planes.state(batch_.states[2 * sequence + 1]) + place;
  t.state_stride = s.values;
  model_.scans.scan(t, reinterpret_cast<float*>(model_.scratch[thread_].data));
}

void StateWalk::log_decay() {
  const float *rate = model_.vectors[op_.w0].weight, *bias = model_.vectors[op_.w1].weight;
  const Share mine = rows();
  for (int r = mine.first; r < mine.last; ++r) {
    const float* a = row(op_.in0, r);
    float* out = row(op_.out, r);
    for (int h = 0; h < width(op_.out); ++h) {
      // log(1 + exp(x)) without overflow.
      const float x = a[h] + bias[h];
      out[h] = -std::exp(rate[h]) * (std::max(x, 0.0f) + std::log1p(std::exp(-std::fabs(x))));
    }
  }
}

// Row `r` of a sequence, counted from its first new one: those before that lie in its slot, or are zero.
const float* StateWalk::input(int sequence, int r) const {
  if (r >= 0) return row(op_.in0, batch_.starts[sequence] + r);
  const StatePlanes& planes = cache_->states[op_.arg[0]];
  const int from = batch_.states[2 * sequence];
  return from < 0 ? model_.zeros.data() : planes.tail(from) + static_cast<size_t>(planes.sizes.taps - 1 + r) * planes.sizes.width;
}

// Some columns of all rows at a time, so that their weights stay in a first-level cache.
void StateWalk::convolve() {
  const Share mine = rows();
  const int columns = width(op_.out);
  for (int sequence = 0; sequence < batch_.num_sequences; ++sequence) {
    const int first = batch_.starts[sequence], last = std::min(mine.last, batch_.starts[sequence + 1]);
    for (int c = 0; c < columns; c += kGateColumns)
      for (int r = std::max(mine.first, first); r < last; ++r) convolve_row(sequence, r - first, c, std::min(kGateColumns, columns - c));
    if (sequence % threads_ == thread_) keep_tail(sequence);
  }
}

void StateWalk::convolve_row(int sequence, int r, int column, int columns) {
  const int stride = width(op_.out), taps = cache_->states[op_.arg[0]].sizes.taps;
  const float* inputs[kMostTaps];
  for (int j = 0; j < taps; ++j) inputs[j] = input(sequence, r - taps + 1 + j);
  float* out = row(op_.out, batch_.starts[sequence] + r) + column;
  model_.scans.convolve(inputs, column, model_.vectors[op_.w0].weight + column, stride, taps, columns, out);
  model_.kernels.silu_mul(out, model_.ones.data(), columns, out);
}

void StateWalk::keep_tail(int sequence) {
  const StatePlanes& planes = cache_->states[op_.arg[0]];
  const int rows = batch_.starts[sequence + 1] - batch_.starts[sequence], kept = planes.sizes.taps - 1;
  float* to = planes.tail(batch_.states[2 * sequence + 1]);
  for (int j = 0; j < kept; ++j)
    std::memcpy(to + static_cast<size_t>(j) * planes.sizes.width, input(sequence, rows - kept + j), sizeof(float) * planes.sizes.width);
}

void StateWalk::scale() {
  const Share mine = rows();
  const float factor = op_.f[0];
  for (int r = mine.first; r < mine.last; ++r)
    std::transform(row(op_.in0, r), row(op_.in0, r) + width(op_.out), row(op_.out, r), [factor](float x) { return x * factor; });
}

}  // namespace kh

extern "C" size_t kh_state_bytes(const kh_state_cache* layers, int32_t num_layers) {
  size_t bytes = 0;
  for (int i = 0; i < num_layers; ++i) bytes += sizeof(float) * (kh::StatePlanes::state_floats(layers[i]) + kh::StatePlanes::tail_floats(layers[i]));
  return bytes;
}

extern "C" int32_t kh_cache_keep_states(kh_cache* cache, const kh_state_cache* layers, int32_t num_layers, int32_t num_slots) try {
  for (int i = 0; i < num_layers; ++i) {
    const kh_state_cache& s = layers[i];
    if (s.taps < 1 || s.taps > kh::kMostTaps) return KH_BAD_ARGUMENT;
    kh::StatePlanes p;
    p.sizes = s;
    cache->memory.emplace_back(sizeof(float) * kh::StatePlanes::state_floats(s) * num_slots, false);
    p.states = reinterpret_cast<float*>(cache->memory.back().data());
    cache->memory.emplace_back(sizeof(float) * kh::StatePlanes::tail_floats(s) * num_slots, false);
    p.tails = reinterpret_cast<float*>(cache->memory.back().data());
    cache->states.push_back(p);
  }
  cache->num_states = num_slots;
  return KH_OK;
} catch (const std::bad_alloc&) {
  return KH_NO_MEMORY;
}
