// Attention in blocks of 128 keys, in eight lanes. Query rows and the query heads of one key head are folded into rows; a block of keys
// gives a part: for every row the greatest score, the mass (sum of exponentials) and the mixed values. Parts are joined in the order of
// their keys. Blocks lie at multiples of 128 positions whatever the step holds, so a row's result depends neither on the other rows of the
// step nor on the thread that computed a part.
// Source   Dao, arXiv:2307.08691, algorithm 1, with parts that are independent as in flash-decoding.
#pragma once

#include "cache8.h"
#include "fold.h"
#include "product8.h"

namespace kh {
namespace {

constexpr int kTileRows = 4;  // rows that share one widening of a tile of keys or values

struct AttendMemory {
  float* q;        // [32][padded key size], scaled
  float* scores;   // [32][128], then shares
  uint16_t* keys;  // a page of codes, expanded
  uint16_t* pages; // the value pages of a block, expanded or made of keys
  uint16_t* cleared;  // two of them, without some of their tokens
  float* scales;   // of the tokens of a block: [128] of keys, then [128] of values
  float *part, *total;
  size_t bytes = 0;

  AttendMemory(uint8_t* memory, int key_size, int value_size) {
    const auto take = [&](size_t count) {
      uint8_t* here = memory ? memory + bytes : nullptr;
      bytes += (count + 63) / 64 * 64;
      return here;
    };
    q = reinterpret_cast<float*>(take(sizeof(float) * kFoldedRows * padded(key_size)));
    scores = reinterpret_cast<float*>(take(sizeof(float) * kFoldedRows * kKeyBlock));
    keys = reinterpret_cast<uint16_t*>(take(sizeof(uint16_t) * LayerPlanes::numbers(key_size)));
    pages = reinterpret_cast<uint16_t*>(take(kPagesInBlock * sizeof(uint16_t) * LayerPlanes::numbers(value_size)));
    cleared = reinterpret_cast<uint16_t*>(take(2 * sizeof(uint16_t) * LayerPlanes::numbers(value_size)));
    scales = reinterpret_cast<float*>(take(2 * sizeof(float) * kKeyBlock));
    part = reinterpret_cast<float*>(take(sizeof(float) * part_floats(value_size)));
    total = reinterpret_cast<float*>(take(sizeof(float) * part_floats(value_size)));
  }
};

inline size_t attend_scratch(int, int key_size, int value_size) { return AttendMemory(nullptr, key_size, value_size).bytes; }

// Scores are in units of log2(e) from here on: powers of two are cheaper than of e.
inline void load_queries(const Fold& fold, float* q) {
  const int size = fold.planes.key_size;
  const F8 scale = all(fold.task.scale * 1.44269504f);
  const float* steps = fold.planes.coded ? fold.planes.steps_of(fold.task.key_head) : nullptr;
  for (int row = 0; row < fold.rows; ++row)
    for (int i = 0; i < padded(size); i += 8) {
      const F8 v = mul(normed8(fold.q(row), i, size, Norm{}, zeros()), scale);
      store(q + row * padded(size) + i, steps ? mul(v, load(steps + i)) : v);
    }
}

// M rows times one run of 16-wide tiles of paired numbers, of keys (16 tokens, pairs of E) or values (16 of E, pairs of tokens): out[M][16]
// = (first ? 0 : out) + sum over `pairs` pairs of x[m][2p], x[m][2p + 1] times line p.
template <int M>
[[gnu::always_inline]] inline void tile_rows(const float* x, int x_stride, const uint16_t* tile, int pairs, float* out, int out_stride, bool first) {
  F8 total[M][2];
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < 2; ++i) total[m][i] = first ? zeros() : load(out + m * out_stride + 8 * i);
  for (int p = 0; p < pairs; ++p) {
    const Pairs a = load_pairs(tile + 32 * p), b = load_pairs(tile + 32 * p + 16);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const F8 left = all(x[m * x_stride + 2 * p]), right = all(x[m * x_stride + 2 * p + 1]);
      total[m][0] = fma(odd(a), right, fma(even(a), left, total[m][0]));
      total[m][1] = fma(odd(b), right, fma(even(b), left, total[m][1]));
    }
  }
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < 2; ++i) store(out + m * out_stride + 8 * i, total[m][i]);
}

inline void tile_block(int rows, const float* x, int x_stride, const uint16_t* tile, int pairs, float* out, int out_stride, bool first) {
  int row = 0;
  for (; rows - row >= kTileRows; row += kTileRows) tile_rows<kTileRows>(x + row * x_stride, x_stride, tile, pairs, out + row * out_stride, out_stride, first);
  x += row * x_stride, out += row * out_stride;
  if (rows - row == 3) tile_rows<3>(x, x_stride, tile, pairs, out, out_stride, first);
  if (rows - row == 2) tile_rows<2>(x, x_stride, tile, pairs, out, out_stride, first);
  if (rows - row == 1) tile_rows<1>(x, x_stride, tile, pairs, out, out_stride, first);
}

// Scores of a row become shares, times the scale of their value, zero where it must not look; fills its greatest score and the mass of the
// shares alone. `scales` are those of keys and of values, nullptr where they are all one.
inline void weigh_row(const Fold& fold, int row, int key0, const float* scales, float* scores, float* part) {
  const int low = fold.first_of(row) - key0, high = fold.last_of(row) + 1 - key0;
  F8 score[kKeyBlock / 8], top[kKeyBlock / 8];
  for (int i = 0; i < kKeyBlock / 8; ++i) {
    score[i] = load(scores + 8 * i);
    if (scales) score[i] = mul(score[i], load(scales + 8 * i));
    top[i] = between(score[i], all(-INFINITY), low - 8 * i, high - 8 * i);
  }
  for (int half = kKeyBlock / 16; half; half /= 2)
    for (int i = 0; i < half; ++i) top[i] = most(top[i], top[i + half]);
  const float greatest = most_of(top[0]);
  F8 share[kKeyBlock / 8];
  for (int i = 0; i < kKeyBlock / 8; ++i) {
    share[i] = between(power8(sub(score[i], all(greatest))), zeros(), low - 8 * i, high - 8 * i);
    // The scale of a token that the row must not see may be no number.
    store(scores + 8 * i, scales ? between(mul(share[i], load(scales + kKeyBlock + 8 * i)), zeros(), low - 8 * i, high - 8 * i) : share[i]);
  }
  for (int half = kKeyBlock / 16; half; half /= 2)
    for (int i = 0; i < half; ++i) share[i] = add(share[i], share[i + half]);
  part[row] = greatest;
  part[kFoldedRows + row] = sum_of(share[0]);
}

// A value page without its tokens before `low` and from `high` on: zero times a NaN would be one.
inline const uint16_t* cleared(const uint16_t* page, int low, int high, int numbers, uint16_t* out) {
  std::memcpy(out, page, sizeof(uint16_t) * numbers);
  for (int token = 0; token < KH_PAGE; ++token)
    if (token < low || token >= high)
      for (int tile = 0; tile < numbers; tile += 512)
        for (int i = 0; i < 16; ++i) out[tile + token / 2 * 32 + 2 * i + token % 2] = 0;
  return out;
}

// Whether some value of a page is infinite or no number.
inline bool broken(const uint16_t* page, int numbers) {
  unsigned greatest = 0;
  for (int i = 0; i < numbers; ++i) greatest = std::max(greatest, page[i] & 0x7fffu);
  return greatest >= 0x7f80;
}

// The value pages [page0, page1) of a block of keys that ends with token `end`.
struct BlockValues {
  int key0, end, page0, page1;
  const uint16_t* page[kPagesInBlock];
};

// Whether a page that some rows look at, and others only in part, holds what those must not meet: their share of it is zero.
inline bool must_part(const Fold& fold, const BlockValues& values) {
  const int low = fold.first_of(fold.rows - 1) - values.key0, high = fold.last_of(0) + 1 - values.key0;
  for (int p = values.page0; p < values.page1; ++p) {
    const bool seen_by_all = p * KH_PAGE >= low && std::min((p + 1) * KH_PAGE, values.end) <= high;
    if (!seen_by_all && broken(values.page[p], padded(fold.planes.value_size) * KH_PAGE)) return true;
  }
  return false;
}

inline void mix(const AttendMemory& memory, const BlockValues& values, int row, int rows, int size, float* mixed) {
  for (int t = 0; t < size / 16; ++t)
    for (int p = values.page0; p < values.page1; ++p)
      tile_block(rows, memory.scores + row * kKeyBlock + p * KH_PAGE, kKeyBlock, values.page[p] + t * 512, 16, mixed + row * size + 16 * t, size,
                 p == values.page0);
}

// The same numbers, row by row, each with the values alone that it looks at.
inline void mix_apart(const Fold& fold, const AttendMemory& memory, const BlockValues& all_values, int size, float* mixed) {
  for (int row = 0; row < fold.rows; ++row) {
    const int low = std::max(0, fold.first_of(row) - all_values.key0), high = std::min(kKeyBlock, fold.last_of(row) + 1 - all_values.key0);
    BlockValues mine = all_values;
    mine.page0 = low / KH_PAGE, mine.page1 = (high + KH_PAGE - 1) / KH_PAGE;
    if (mine.page0 >= mine.page1) {
      std::memset(mixed + row * size, 0, sizeof(float) * size);
      continue;
    }
    for (int p = mine.page0; p < mine.page1; ++p) {
      const int from = low - p * KH_PAGE, to = high - p * KH_PAGE;
      // Only the first and the last page can be seen in part.
      uint16_t* room = memory.cleared + (p == mine.page0 ? 0 : size * KH_PAGE);
      if (from > 0 || to < KH_PAGE) mine.page[p] = cleared(all_values.page[p], from, to, size * KH_PAGE, room);
    }
    mix(memory, mine, row, 1, size, mixed);
  }
}

// The part of one block of keys.
inline void part_of(const Fold& fold, const AttendMemory& memory, int block, float* part) {
  const LayerPlanes& planes = fold.planes;
  const int key0 = block * kKeyBlock, key_size = padded(planes.key_size), value_size = padded(planes.value_size);
  const int end = std::min(kKeyBlock, fold.last_of(fold.rows - 1) + 1 - key0);
  BlockValues values{key0, end, std::max(0, fold.first_of(0) - key0) / KH_PAGE, (end + KH_PAGE - 1) / KH_PAGE, {}};
  const int32_t* pages = fold.task.pages + key0 / KH_PAGE;
  for (int p = values.page0; p < values.page1; ++p) {
    float* scales = memory.scales + p * KH_PAGE;
    const int head = fold.task.key_head;
    const uint16_t* keys = tiles_of(planes.keys_of(pages[p], head), planes.key_size, planes.coded, memory.keys, scales);
    for (int chunk = 0; chunk < key_size / 32; ++chunk)
      for (int half = 0; half < 2; ++half)
        tile_block(fold.rows, memory.q + 32 * chunk, key_size, keys + (2 * chunk + half) * 512, 16, memory.scores + p * KH_PAGE + 16 * half, kKeyBlock,
                   chunk == 0);
    uint16_t* room = memory.pages + p * LayerPlanes::numbers(planes.value_size);
    if (planes.values_in_keys) keys_as_values(keys, planes.value_size, room), values.page[p] = room;
    else values.page[p] = tiles_of(planes.values_of(pages[p], head), planes.value_size, planes.coded, room, scales + kKeyBlock);
  }
  for (int row = 0; row < fold.rows; ++row) weigh_row(fold, row, key0, planes.coded ? memory.scales : nullptr, memory.scores + row * kKeyBlock, part);
  float* mixed = part + 2 * kFoldedRows;
  // Codes are numbers whatever they were made of, and a share of zero makes zero of them.
  if (planes.coded) return mix(memory, values, 0, fold.rows, value_size, mixed);
  // What lies behind the last token belongs to nobody yet.
  BlockValues owned = values;
  const uint16_t*& last = owned.page[values.page1 - 1];
  if (end % KH_PAGE) last = cleared(last, 0, end % KH_PAGE, value_size * KH_PAGE, memory.cleared);
  if (must_part(fold, owned)) mix_apart(fold, memory, values, value_size, mixed);
  else mix(memory, owned, 0, fold.rows, value_size, mixed);
}

// total ← total and part together; the first part is the total.
inline void join(const Fold& fold, const float* part, float* total, bool first) {
  const int size = padded(fold.planes.value_size);
  if (first) {
    std::memcpy(total, part, sizeof(float) * part_floats(fold.planes.value_size));
    return;
  }
  for (int row = 0; row < fold.rows; ++row) {
    // A row that sees nothing of a block has the greatest score -inf there, and its share of the sum is nothing.
    const F8 old = all(total[row]), fresh = all(part[row]), top = most(old, fresh), nothing = all(-FLT_MAX);
    const F8 keep = unless_less(power8(sub(old, top)), old, nothing, zeros()), take = unless_less(power8(sub(fresh, top)), fresh, nothing, zeros());
    float* mass = total + kFoldedRows + row;
    *mass = sum_of(between(fma(all(part[kFoldedRows + row]), take, mul(all(*mass), keep)), zeros(), 0, 1));
    total[row] = most_of(top);
    const float* from = part + 2 * kFoldedRows + row * size;
    float* to = total + 2 * kFoldedRows + row * size;
    for (int i = 0; i < size; i += 8) store(to + i, fma(load(from + i), take, mul(load(to + i), keep)));
  }
}

inline void write_rows(const Fold& fold, const float* total) {
  const int size = fold.planes.value_size;
  for (int row = 0; row < fold.rows; ++row) {
    const F8 mass = all(total[kFoldedRows + row]);
    const float* mixed = total + 2 * kFoldedRows + row * padded(size);
    for (int i = 0; i < size; i += 8) store_some(fold.out(row) + i, size - i, div(load(mixed + i), mass));
  }
}

inline void attend_fold(const Fold& fold, const AttendMemory& memory) {
  const AttendTask& task = fold.task;
  if (!task.joins) load_queries(fold, memory.q);
  const int first = task.parts ? task.block0 : fold.first_of(0) / kKeyBlock;
  const int last = task.parts ? task.block1 : fold.last_of(fold.rows - 1) / kKeyBlock + 1;
  for (int block = first; block < last; ++block) {
    float* part = task.parts ? task.parts + (block - task.block0) * part_floats(fold.planes.value_size) : memory.part;
    if (!task.joins) part_of(fold, memory, block, part);
    if (task.joins || !task.parts) join(fold, part, memory.total, block == first);
  }
  if (task.joins || !task.parts) write_rows(fold, memory.total);
}

void attend(const LayerPlanes& planes, const AttendTask& task, Scratch& scratch) {
  const AttendMemory memory(scratch.data, planes.key_size, planes.value_size);
  const int all_rows = task.rows * task.group;
  for (int row = 0; row < all_rows; row += kFoldedRows) attend_fold({planes, task, row, std::min(kFoldedRows, all_rows - row)}, memory);
}

}  // namespace
}  // namespace kh
