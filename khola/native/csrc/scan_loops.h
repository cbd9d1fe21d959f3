// The loops of scan.h, for the one file that includes this.
#pragma once

#include <cmath>
#include <cstring>

#include "scan.h"

namespace kh {

namespace {

constexpr int kLane = 16, kLanes = kPanel / kLane;
typedef float Lane __attribute__((vector_size(kLane * sizeof(float)), may_alias));

inline void spread(float x, Lane& to) { to = Lane{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

// x times `scale`, divided by its length; sixteen sums that are added up in order.
void to_length(const float* x, int n, float scale, float* out) {
  float sums[kLane] = {}, square = 0;
  int i = 0;
  for (; i + kLane <= n; i += kLane)
    for (int j = 0; j < kLane; ++j) sums[j] += x[i + j] * x[i + j];
  for (; i < n; ++i) sums[i % kLane] += x[i] * x[i];
  for (float sum : sums) square += sum;
  const float factor = scale / std::sqrt(square + 1e-6f);
  for (i = 0; i < n; ++i) out[i] = x[i] * factor;
}

// S ← decay S + k vᵀ; qᵀ S
inline void fade_row(Lane* state, int keys, float decay, const float* q, const float* k, const Lane* v, Lane* read) {
  Lane fade, query, key;
  spread(decay, fade);
  for (int i = 0; i < keys; ++i, state += kLanes) {
    spread(q[i], query);
    spread(k[i], key);
#pragma GCC unroll 4
    for (int j = 0; j < kLanes; ++j) {
      state[j] = state[j] * fade + key * v[j];
      read[j] += state[j] * query;
    }
  }
}

// S ← decay S, S ← S + k (share (v − Sᵀk))ᵀ; qᵀ S
inline void delta_row(Lane* state, int keys, float decay, float share, const float* q, const float* k, const Lane* v, Lane* read) {
  Lane fade, part, query, key, found[kLanes] = {}, written[kLanes];
  spread(decay, fade);
  spread(share, part);
  Lane* row = state;
  for (int i = 0; i < keys; ++i, row += kLanes) {
    spread(k[i], key);
#pragma GCC unroll 4
    for (int j = 0; j < kLanes; ++j) {
      row[j] = row[j] * fade;
      found[j] += row[j] * key;
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kLanes; ++j) written[j] = (v[j] - found[j]) * part;
  row = state;
  for (int i = 0; i < keys; ++i, row += kLanes) {
    spread(q[i], query);
    spread(k[i], key);
#pragma GCC unroll 4
    for (int j = 0; j < kLanes; ++j) {
      row[j] += key * written[j];
      read[j] += row[j] * query;
    }
  }
}

void scan(const ScanTask& t, float* memory) {
  Lane* state = reinterpret_cast<Lane*>(memory);
  float *value = memory + static_cast<size_t>(t.keys) * kPanel, *query = value + kPanel, *key = query + t.keys;
  std::memset(memory, 0, sizeof(float) * (static_cast<size_t>(t.keys) * kPanel + kPanel));
  const size_t bytes = sizeof(float) * t.columns;
  for (int i = 0; i < t.keys && t.from; ++i) std::memcpy(memory + i * kPanel, t.from + static_cast<size_t>(i) * t.state_stride, bytes);
  const float scale = 1.0f / std::sqrt(static_cast<float>(t.keys));
  for (size_t r = 0; r < static_cast<size_t>(t.rows); ++r) {
    const float *q = t.q + r * t.q_stride, *k = t.k + r * t.k_stride;
    std::memcpy(value, t.v + r * t.v_stride, bytes);
    Lane v[kLanes], read[kLanes] = {};
    std::memcpy(v, value, sizeof(v));
    if (t.log_decay) {
      to_length(q, t.keys, scale, query);
      to_length(k, t.keys, 1.0f, key);
      delta_row(state, t.keys, std::exp(t.log_decay[r * t.log_decay_stride]), t.share[r * t.share_stride], query, key, v, read);
    } else {
      fade_row(state, t.keys, t.decay, q, k, v, read);
    }
    std::memcpy(t.out + r * t.out_stride, read, bytes);
  }
  for (int i = 0; i < t.keys; ++i) std::memcpy(t.to + static_cast<size_t>(i) * t.state_stride, memory + i * kPanel, bytes);
}

void convolve(const float* const* rows, int first, const float* weights, int stride, int taps, int columns, float* out) {
  for (int c = 0; c < columns; ++c) out[c] = weights[c] * rows[0][first + c];
  for (int j = 1; j < taps; ++j) {
    const float *weight = weights + static_cast<size_t>(j) * stride, *row = rows[j] + first;
    for (int c = 0; c < columns; ++c) out[c] += weight[c] * row[c];
  }
}

constexpr Scans kScans = {scan, convolve};

}  // namespace

}  // namespace kh
