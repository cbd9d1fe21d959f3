// Products of matrices, and what becomes of their sums; see kh_finish.
#pragma once

#include "train_tiles.h"

namespace kh {
namespace {

constexpr int kStepsAtOnce = 18;  // steps of a right panel that stay in a first-level cache while all left panels pass

// Sums of a row: sixteen for each of two halves, `side` telling which.
inline float* row_of(float* sums, int row, int side) { return sums + row / 16 * 512 + side * 256 + row % 16 * 16; }

void store_sums(const kh_product& p, int64_t first, int rows, int column, int columns, float* sums) {
  Lane bias[2] = {};
  for (int side = 0; side < 2 && p.bias; ++side) floats(p.bias + column + 16 * side, greater(0, lesser(columns - 16 * side, kLane)), bias[side]);
  for (int r = 0; r < rows; ++r)
    for (int side = 0; side < 2; ++side) {
      const int count = columns - 16 * side;
      if (count <= 0) break;
      const int64_t at = (first + r) * p.stride + column + 16 * side;
      Lane x, before;
      get(row_of(sums, r, side), x);
      x += bias[side];
      if (p.out_type == KH_BFLOAT16) {
        narrow(x, count, static_cast<uint16_t*>(p.out) + at);
        continue;
      }
      float* out = static_cast<float*>(p.out) + at;
      if (p.finish == KH_ADD_TO) {
        floats(out, count, before);
        x += before;
      }
      floats(x, count, out);
    }
}

// Column of a row's target among those of a panel, or something else.
inline int64_t target_of(const kh_product& p, int64_t row, int column) { return p.targets[row] < 0 ? -1 : p.targets[row] - p.first_column - column; }

void sum_exponentials(const kh_product& p, int64_t first, int rows, int column, int columns, float* sums) {
  for (int r = 0; r < rows; ++r) {
    float *most_at = p.most + (first + r) * kLane, *sum_at = p.sum + (first + r) * kLane;
    const int64_t target = target_of(p, first + r, column);
    if (target >= 0 && target < columns) p.at_target[first + r] = row_of(sums, r, static_cast<int>(target) / 16)[target % 16];
    Lane most, sum, x[2];
    get(most_at, most);
    get(sum_at, sum);
    const Lane before = most;
    for (int side = 0; side < 2; ++side) {
      get(row_of(sums, r, side), x[side]);
      for (int i = greater(0, columns - 16 * side); i < kLane; ++i) x[side][i] = -1e38f;
      raise(x[side], most);
    }
    Lane shrunk = (before - most) * kLog2E;
    power(shrunk);
    sum *= shrunk;
    for (Lane& one : x) {
      one = (one - most) * kLog2E;
      power(one);
      sum += one;
    }
    put(most_at, most);
    put(sum_at, sum);
  }
}

void softmax_minus(const kh_product& p, int64_t first, int rows, int column, int columns, float* sums) {
  for (int r = 0; r < rows; ++r) {
    const int64_t target = target_of(p, first + r, column);
    const float factor = p.factor[first + r];
    for (int side = 0; side < 2; ++side) {
      const int count = columns - 16 * side;
      if (count <= 0) break;
      Lane x;
      get(row_of(sums, r, side), x);
      x = (x - p.log_sum[first + r]) * kLog2E;
      power(x);
      if (target >= 16 * side && target < 16 * side + 16) x[target % 16] -= 1.0f;
      x *= factor;
      const int64_t at = (first + r) * p.stride + column + 16 * side;
      if (p.out_type == KH_BFLOAT16) narrow(x, count, static_cast<uint16_t*>(p.out) + at);
      else floats(x, count, static_cast<float*>(p.out) + at);
    }
  }
}

void finish(const kh_product& p, int64_t first, int rows, int column, int columns, float* sums) {
  if (p.finish == KH_LOG_SUM) sum_exponentials(p, first, rows, column, columns, sums);
  else if (p.finish == KH_SOFTMAX_MINUS) softmax_minus(p, first, rows, column, columns, sums);
  else store_sums(p, first, rows, column, columns, sums);
}

// Left panels stay in the second-level cache, the part of a right one that is worked on in the first. Whole panels whose sums are only to be
// stored wait until the next two panels meet, so that the vector unit has something to do then.
void product(const kh_product& p, int first, int rows, const uint16_t* right, uint16_t* left, float* sums) {
  const int steps = panels_of(p.k), pairs = panels_of(rows), parts = (steps + kStepsAtOnce - 1) / kStepsAtOnce;
  for (int pair = 0; pair < pairs; ++pair)
    pack(p.left, first + pair * kSide, lesser(kSide, rows - pair * kSide), p.k, false, left + pair * steps * kPair);
  const bool plain = p.finish == KH_STORE && !p.bias, wide = p.out_type == KH_FLOAT32;
  Lines waiting;
  int turn = 0;
  for (int column = 0; column < p.n; column += kSide, right += steps * kPair)
    for (int part = 0; part < parts; ++part) {
      const int from = steps * part / parts, to = steps * (part + 1) / parts;
      for (int pair = 0; pair < pairs; ++pair) {
        float* own = sums + (parts == 1 ? turn++ % 2 : pair) * kPair;
        if (waiting.sums == own) waiting.rest();
        meet(left + (pair * steps + from) * kPair, right + from * kPair, to - from, own, part > 0, &waiting);
        if (part + 1 < parts) continue;
        const int here = lesser(kSide, rows - pair * kSide), columns = lesser(kSide, p.n - column);
        if (!plain || columns < kSide) {
          finish(p, first + pair * kSide, here, column, columns, own);
          continue;
        }
        const int64_t at = (first + pair * kSide) * p.stride + column;
        waiting = {own, static_cast<uint8_t*>(p.out) + at * (wide ? 4 : 2), p.stride * (wide ? 4 : 2), 0, here, wide};
      }
    }
  waiting.rest();
}

}  // namespace
}  // namespace kh
