// Attention over keys and values in float32, for the one file that includes this. Of a page and key head, keys lie [E][32 tokens] and values
// [V / 32][32 tokens][32]: either is multiplied as a panel of a matrix is.
//
// A block of 128 keys gives a part, and parts are joined in the order of their keys, as in attend8.h: a row's result depends neither on the
// other rows of the step nor on the thread that computed a part.
#pragma once

#include "fold.h"
#include "precise_loops.h"

namespace kh {
namespace {

void store(const LayerPlanes& p, const float* k, const float* v, int32_t page, int token) {
  for (int head = 0; head < p.heads; ++head, k += p.key_size) {
    float* keys = reinterpret_cast<float*>(p.keys_of(page, head)) + token;
    for (int i = 0; i < p.key_size; ++i) keys[i * KH_PAGE] = k[i];
    if (!p.value_size) continue;
    float* values = reinterpret_cast<float*>(p.values_of(page, head)) + token * kStrip;
    for (int i = 0; i < p.value_size; ++i) values[i / kStrip * KH_PAGE * kStrip + i % kStrip] = v[head * p.value_size + i];
  }
}

struct AttendMemory {
  float* q;       // [32][key size]
  float* scores;  // [32][128], then shares
  float* turned;  // 32 numbers of a page of keys, as values
  float *part, *total;
  size_t bytes = 0;

  AttendMemory(uint8_t* memory, int key_size, int value_size) {
    const auto take = [&](size_t floats) {
      float* here = reinterpret_cast<float*>(memory ? memory + bytes : nullptr);
      bytes += (floats * sizeof(float) + 63) / 64 * 64;
      return here;
    };
    q = take(static_cast<size_t>(kFoldedRows) * key_size);
    scores = take(kFoldedRows * kKeyBlock);
    turned = take(KH_PAGE * kStrip);
    part = take(part_floats(value_size));
    total = take(part_floats(value_size));
  }
};

size_t attend_scratch(int, int key_size, int value_size) { return AttendMemory(nullptr, key_size, value_size).bytes; }

// Which tokens of a run of `count` from `key0` on a row may look at: [low, high), or none.
struct Sight {
  int low, high;
  Sight(const Fold& fold, int row, int key0, int count)
      : low(std::max(0, fold.first_of(row) - key0)), high(std::min(count, fold.last_of(row) + 1 - key0)) {}
  bool none() const { return low >= high; }
  bool all(int count) const { return low == 0 && high == count; }
};

// Scores of a row in a block become shares; what it must not look at has none, and may be anything.
inline void weigh_row(const Fold& fold, int row, int block, float* scores, float* part) {
  const Sight sight(fold, row, block * kKeyBlock, kKeyBlock);
  Lane top = Lane{} - INFINITY;
  for (int i = 0; i < kKeyBlock; ++i) scores[i] = i >= sight.low && i < sight.high ? scores[i] * fold.task.scale : -INFINITY;
  for (int i = 0; i < kKeyBlock; i += kLane) top = where(load(scores + i) > top, load(scores + i), top);
  float greatest = top[0], mass = 0, masses[16];
  for (int i = 1; i < kLane; ++i) greatest = std::max(greatest, top[i]);
  for (int j = 0; j < 16; j += kLane) {
    Lane sum = {};
    for (int i = j; i < kKeyBlock; i += 16) {
      const Lane score = load(scores + i), share = where(score == -INFINITY, Lane{}, exponential(score - greatest));
      put(scores + i, share);
      sum += share;
    }
    put(masses + j, sum);
  }
  for (const float one : masses) mass += one;
  part[row] = greatest;
  part[kFoldedRows + row] = mass;
}

// 32 values of the tokens of a page, [tokens][32]; made of keys where there are no others.
inline const float* values_of(const Fold& fold, int32_t page, int strip, float* turned) {
  const LayerPlanes& planes = fold.planes;
  const size_t place = static_cast<size_t>(strip) * KH_PAGE * kStrip;
  if (!planes.values_in_keys) return reinterpret_cast<const float*>(planes.values_of(page, fold.task.key_head)) + place;
  const float* keys = reinterpret_cast<const float*>(planes.keys_of(page, fold.task.key_head)) + place;
  for (int token = 0; token < KH_PAGE; ++token)
    for (int i = 0; i < kStrip; ++i) turned[token * kStrip + i] = keys[i * KH_PAGE + token];
  return turned;
}

// The shares of a page's tokens times its values, added to what is mixed. A row that sees the page in part takes no other token's value, for
// that may be no number: rows that see it all are multiplied together.
inline void mix_page(const Fold& fold, const AttendMemory& memory, int32_t page, int key0, const float* shares, float* mixed) {
  const int size = padded(fold.planes.value_size);
  for (int strip = 0; strip < size / kStrip; ++strip, mixed += kStrip) {
    const float* values = values_of(fold, page, strip, memory.turned);
    for (int row = 0, rows; row < fold.rows; row += rows) {
      const Sight sight(fold, row, key0, KH_PAGE);
      for (rows = 1; sight.all(KH_PAGE) && row + rows < fold.rows && Sight(fold, row + rows, key0, KH_PAGE).all(KH_PAGE);) ++rows;
      if (sight.none()) continue;
      multiply(shares + row * kKeyBlock + sight.low, kKeyBlock, values + sight.low * kStrip, sight.high - sight.low, mixed + row * size, size, rows,
               false);
    }
  }
}

// The part of one block of keys.
inline void part_of(const Fold& fold, const AttendMemory& memory, int block, float* part) {
  const int key0 = block * kKeyBlock, size = fold.planes.key_size;
  const int page0 = std::max(0, fold.first_of(0) - key0) / KH_PAGE;
  const int page1 = (std::min(kKeyBlock, fold.last_of(fold.rows - 1) + 1 - key0) + KH_PAGE - 1) / KH_PAGE;
  const int32_t* pages = fold.task.pages + key0 / KH_PAGE;
  for (int p = page0; p < page1; ++p) {
    const float* keys = reinterpret_cast<const float*>(fold.planes.keys_of(pages[p], fold.task.key_head));
    multiply(memory.q, size, keys, size, memory.scores + p * KH_PAGE, kKeyBlock, fold.rows, true);
  }
  for (int row = 0; row < fold.rows; ++row) weigh_row(fold, row, block, memory.scores + row * kKeyBlock, part);
  float* mixed = part + 2 * kFoldedRows;
  std::memset(mixed, 0, sizeof(float) * fold.rows * padded(fold.planes.value_size));
  for (int p = page0; p < page1; ++p) mix_page(fold, memory, pages[p], key0 + p * KH_PAGE, memory.scores + p * KH_PAGE, mixed);
}

// total ← total and part together; the part of the first block that a row sees is its total.
inline void join(const Fold& fold, const float* part, int block, float* total) {
  const int size = padded(fold.planes.value_size);
  for (int row = 0; row < fold.rows; ++row) {
    const int first = fold.first_of(row) / kKeyBlock, last = fold.last_of(row) / kKeyBlock;
    if (block < first || block > last) continue;
    const float *from = part + 2 * kFoldedRows + static_cast<size_t>(row) * size, old = total[row], fresh = part[row];
    float *to = total + 2 * kFoldedRows + static_cast<size_t>(row) * size, *mass = total + kFoldedRows + row;
    if (block == first) {
      total[row] = fresh;
      *mass = part[kFoldedRows + row];
      std::memcpy(to, from, sizeof(float) * size);
      continue;
    }
    const float top = std::max(old, fresh), keep = exponential(old - top), take = exponential(fresh - top);
    total[row] = top;
    *mass = *mass * keep + part[kFoldedRows + row] * take;
    for (int i = 0; i < size; ++i) to[i] = to[i] * keep + from[i] * take;
  }
}

inline void write_rows(const Fold& fold, const float* total) {
  const int size = fold.planes.value_size;
  for (int row = 0; row < fold.rows; ++row) {
    const float *mixed = total + 2 * kFoldedRows + static_cast<size_t>(row) * padded(size), mass = total[kFoldedRows + row];
    float* out = fold.out(row);
    for (int i = 0; i < size; ++i) out[i] = mixed[i] / mass;
  }
}

inline void attend_fold(const Fold& fold, const AttendMemory& memory) {
  const AttendTask& task = fold.task;
  const int size = fold.planes.key_size;
  for (int row = 0; row < fold.rows && !task.joins; ++row) std::memcpy(memory.q + row * size, fold.q(row), sizeof(float) * size);
  const int first = task.parts ? task.block0 : fold.first_of(0) / kKeyBlock;
  const int last = task.parts ? task.block1 : fold.last_of(fold.rows - 1) / kKeyBlock + 1;
  for (int block = first; block < last; ++block) {
    float* part = task.parts ? task.parts + (block - task.block0) * part_floats(fold.planes.value_size) : memory.part;
    if (!task.joins) part_of(fold, memory, block, part);
    if (task.joins || !task.parts) join(fold, part, block, memory.total);
  }
  if (task.joins || !task.parts) write_rows(fold, memory.total);
}

void attend(const LayerPlanes& planes, const AttendTask& task, Scratch& scratch) {
  const AttendMemory memory(scratch.data, planes.key_size, planes.value_size);
  const int all_rows = task.rows * task.group;
  for (int row = 0; row < all_rows; row += kFoldedRows) attend_fold({planes, task, row, std::min(kFoldedRows, all_rows - row)}, memory);
}

constexpr Precise kPrecise = {to_plain, many, many_scratch, store, attend, attend_scratch, part_floats};

}  // namespace
}  // namespace kh
