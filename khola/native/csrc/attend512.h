// Attention in blocks of 128 keys, for any unit that product512.h describes.
//
// Query rows and the query heads of one key head are folded into the rows of a tile. A block of keys gives a part: for every row the
// greatest score, the mass (sum of exponentials) and the mixed values. Parts are joined in the order of their keys. Blocks lie at multiples of 128 positions
// whatever the step holds, so a row's result depends neither on the other rows of the step nor on the thread that computed a part.
// Source   Dao, arXiv:2307.08691, algorithm 1, with parts that are independent as in flash-decoding.
#pragma once

#include "cache512.h"
#include "product512.h"

namespace kh {
namespace {

constexpr int kFoldedRows = 32;  // rows of a tile pair
constexpr int kPagesInBlock = kKeyBlock / KH_PAGE;

// Pages of a block of keys that were made values already.
struct MadeValues {
  int block = -1, pages = 0;
};

inline int value_tiles(int value_size) { return (value_size + 31) / 32 * 2; }

// Floats of a part: greatest[32], mass[32], mixed[2][value tiles][16][16].
inline size_t part_floats(int value_size) { return 2 * kFoldedRows + static_cast<size_t>(2) * value_tiles(value_size) * 256; }

struct AttendMemory {
  uint16_t* q;       // [2][chunks][16][32]
  float* scores;     // [2][8][16][16]
  uint16_t* shares;  // [2][4 pages][16][32]
  uint16_t* keys;    // a page of codes, expanded
  uint16_t* pages;   // the value pages of a block, expanded or made of keys
  uint16_t* cleared; // two of them, without some of their tokens
  float* scales;     // of the tokens of a block: [128] of keys, times what scores are multiplied with, then [128] of values
  float *part, *total;
  float* row;        // mixed values of rows that are worked out apart
  size_t q_numbers, total_floats;  // of one fold; `q` and `total` are those of several

  AttendMemory of_fold(int number) const {
    AttendMemory own = *this;
    own.q += number * q_numbers;
    own.total += number * total_floats;
    return own;
  }

  AttendMemory(uint8_t* memory, int key_size, int value_size) {
    const auto take = [&](size_t count) {
      uint8_t* here = memory ? memory + bytes : nullptr;
      bytes += (count + 63) / 64 * 64;
      return here;
    };
    q_numbers = static_cast<size_t>(kFoldedRows) * ((key_size + 31) / 32 * 32);
    total_floats = (part_floats(value_size) + 15) / 16 * 16;
    q = reinterpret_cast<uint16_t*>(take(kFoldsTogether * q_numbers * 2));
    scores = reinterpret_cast<float*>(take(kFoldedRows * kKeyBlock * 4));
    shares = reinterpret_cast<uint16_t*>(take(kFoldedRows * kKeyBlock * 2));
    keys = reinterpret_cast<uint16_t*>(take(LayerPlanes::numbers(key_size) * 2));
    pages = reinterpret_cast<uint16_t*>(take(LayerPlanes::numbers(value_size) * 2 * kPagesInBlock));
    cleared = reinterpret_cast<uint16_t*>(take(LayerPlanes::numbers(value_size) * 2 * 2));
    scales = reinterpret_cast<float*>(take(2 * kKeyBlock * 4));
    part = reinterpret_cast<float*>(take(part_floats(value_size) * 4));
    total = reinterpret_cast<float*>(take(kFoldsTogether * total_floats * 4));
    row = reinterpret_cast<float*>(take(part_floats(value_size) * 4));
  }
  size_t bytes = 0;
};

inline size_t attend_scratch(int, int key_size, int value_size) {
  return AttendMemory(nullptr, key_size, value_size).bytes;
}

// Folded rows [row0, row0 + rows) of a task: row i is token i / group, query head i % group.
struct Fold {
  const LayerPlanes& planes;
  const AttendTask& task;
  int row0, rows;
  int last[kFoldedRows];  // positions

  Fold(const LayerPlanes& of, const AttendTask& in, int first, int count) : planes(of), task(in), row0(first), rows(count) {
    for (int row = 0; row < rows; ++row) last[row] = task.position + (row0 + row) / task.group;
  }
  int last_of(int row) const { return last[row]; }
  int first_of(int row) const { return task.window ? std::max(0, last_of(row) - task.window + 1) : 0; }
  const float* q(int row) const { return task.q + static_cast<size_t>((row0 + row) / task.group) * task.q_stride + (row0 + row) % task.group * planes.key_size; }
  float* out(int row) const {
    return task.out + static_cast<size_t>((row0 + row) / task.group) * task.out_stride + (row0 + row) % task.group * planes.value_size;
  }
};

inline void load_queries(const Fold& fold, uint16_t* q) {
  const int size = fold.planes.key_size, chunks = (size + 31) / 32;
  const float* steps = fold.planes.coded ? fold.planes.steps_of(fold.task.key_head) : nullptr;
  for (int row = 0; row < (fold.rows + 15) / 16 * 16; ++row)
    for (int i = 0; i < chunks * 32; i += 16) {
      uint16_t* to = q + (row / 16 * chunks + i / 32) * 512 + row % 16 * 32 + i % 32;
      __m512 v = row < fold.rows ? _mm512_maskz_loadu_ps(tail_mask(size - i), fold.q(row) + i) : _mm512_setzero_ps();
      if (steps) v = _mm512_mul_ps(v, _mm512_loadu_ps(steps + i));
      store_bf16(to, v);
    }
}

// Which keys of a block a row may look at: [low, high).
struct Sight {
  int low, high;
  Sight(const Fold& fold, int row, int key0) : low(fold.first_of(row) - key0), high(fold.last_of(row) + 1 - key0) {}
  bool all() const { return low <= 0 && high >= kKeyBlock; }
  __mmask16 of(int i) const { return tail_mask(high - 16 * i) & static_cast<__mmask16>(~tail_mask(low - 16 * i)); }
};

inline const float* scores_of(const AttendMemory& memory, int row) { return memory.scores + row / 16 * 2048 + row % 16 * 16; }

// What the scores of sixteen keys are multiplied with: the same for all, or each its own.
template <bool Coded>
inline __m512 score_scale(const AttendMemory& memory, int i, __m512 scale) {
  return Coded ? _mm512_load_ps(memory.scales + 16 * i) : scale;
}

// The greatest score of a row in a block, scaled.
template <bool All, bool Coded>
inline float greatest_score(const AttendMemory& memory, int row, const Sight& sight, __m512 scale) {
  const __m512 nothing = _mm512_set1_ps(-INFINITY);
  __m512 top[kKeyBlock / 16];
#pragma GCC unroll 8
  for (int i = 0; i < kKeyBlock / 16; ++i) {
    const __m512 score = _mm512_load_ps(scores_of(memory, row) + 256 * i), by = score_scale<Coded>(memory, i, scale);
    top[i] = All ? _mm512_mul_ps(score, by) : _mm512_mask_mul_ps(nothing, sight.of(i), score, by);
  }
#pragma GCC unroll 4
  for (int half = kKeyBlock / 32; half; half /= 2)
    for (int i = 0; i < half; ++i) top[i] = _mm512_max_ps(top[i], top[i + half]);
  return _mm512_reduce_max_ps(top[0]);
}

// Scores of a row in a block become shares, times the scale of their value (bfloat16, zero where the row must not look); gives the sum of the
// shares alone.
template <bool All, bool Coded>
inline float weigh_row(const AttendMemory& memory, int row, const Sight& sight, __m512 scale, float greatest) {
  uint16_t* shares = memory.shares + row / 16 * kPagesInBlock * 512 + row % 16 * 32;
  const __m512 shift = _mm512_set1_ps(greatest);
  __m512 e[kKeyBlock / 16], scaled[2];
#pragma GCC unroll 8
  for (int i = 0; i < kKeyBlock / 16; ++i) {
    const __m512 score = _mm512_mul_ps(_mm512_load_ps(scores_of(memory, row) + 256 * i), score_scale<Coded>(memory, i, scale));
    e[i] = power16(_mm512_sub_ps(score, shift));
    if (!All) e[i] = _mm512_maskz_mov_ps(sight.of(i), e[i]);
    // The scale of a token that the row must not see may be no number.
    scaled[i % 2] = Coded ? _mm512_maskz_mul_ps(All ? 0xffff : sight.of(i), e[i], _mm512_load_ps(memory.scales + kKeyBlock + 16 * i)) : e[i];
    if (i % 2) _mm512_store_si512(shares + i / 2 * 512, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(scaled[1], scaled[0])));
  }
#pragma GCC unroll 4
  for (int half = kKeyBlock / 32; half; half /= 2)
    for (int i = 0; i < half; ++i) e[i] = _mm512_add_ps(e[i], e[i + half]);
  return _mm512_reduce_add_ps(e[0]);
}

inline __m512 scale_of(const Fold& fold) { return _mm512_set1_ps(fold.task.scale * 1.44269504f); }

// Scores become shares; `part` gets every row's greatest score, in units of log2(e), and mass. In two passes over the rows, because what one
// row waits for inside a pass the next rows fill.
template <bool Coded>
void weigh(const Fold& fold, const AttendMemory& memory, int key0, float* part) {
  const __m512 scale = scale_of(fold);
  for (int row = 0; row < fold.rows; ++row) {
    const Sight sight(fold, row, key0);
    part[row] = sight.all() ? greatest_score<true, Coded>(memory, row, sight, scale) : greatest_score<false, Coded>(memory, row, sight, scale);
  }
  for (int row = 0; row < fold.rows; ++row) {
    const Sight sight(fold, row, key0);
    part[kFoldedRows + row] = sight.all() ? weigh_row<true, Coded>(memory, row, sight, scale, part[row]) : weigh_row<false, Coded>(memory, row, sight, scale, part[row]);
  }
}

// A value page without its tokens before `low` and from `high` on: zero times a NaN would be one.
inline const uint16_t* cleared(const uint16_t* page, int low, int high, int tiles, uint16_t* out) {
  for (int t = 0; t < tiles; ++t)
    for (int pair = 0; pair < 16; ++pair) {
      const bool even = 2 * pair >= low && 2 * pair < high, odd = 2 * pair + 1 >= low && 2 * pair + 1 < high;
      const __mmask32 mask = (even ? 0x55555555 : 0) | (odd ? 0xaaaaaaaa : 0);
      _mm512_store_si512(out + t * 512 + pair * 32, _mm512_maskz_loadu_epi16(mask, page + t * 512 + pair * 32));
    }
  return out;
}

// Whether some value of a page is infinite or no number.
inline bool broken(const uint16_t* page, int tiles) {
  __m512i most = _mm512_setzero_si512();
  for (int line = 0; line < tiles * 16; ++line)
    most = _mm512_max_epu16(most, _mm512_and_si512(_mm512_load_si512(page + line * 32), _mm512_set1_epi16(0x7fff)));
  return _mm512_cmpge_epu16_mask(most, _mm512_set1_epi16(0x7f80));
}

// The value pages [page0, page1) of a block of keys.
struct BlockValues {
  int key0, page0, page1, tiles;
  const uint16_t* page[kPagesInBlock];
};

// Whether a page that some rows look at, and others only in part, holds what they must not meet: their share of it is zero.
inline bool must_part(const Fold& fold, const BlockValues& values) {
  const int first = fold.first_of(fold.rows - 1) - values.key0, last = fold.last_of(0) - values.key0;
  const int end = fold.last_of(fold.rows - 1) - values.key0;
  for (int p = values.page0; p < values.page1; ++p) {
    const bool whole = p * KH_PAGE >= first && std::min(p * KH_PAGE + KH_PAGE - 1, end) <= last;
    if (!whole && broken(values.page[p], values.tiles)) return true;
  }
  return false;
}

template <typename Unit, int Tiles>
void mix(const Fold& fold, const AttendMemory& memory, const BlockValues& values, float* mixed) {
  const uint16_t* shares = memory.shares + values.page0 * 512;
  const size_t next = static_cast<size_t>(values.tiles) * 256;
  for (int t = 0; t < values.tiles; t += 2)
    Unit::template block<Tiles>(shares, kPagesInBlock * 512, [&](int s) { return values.page[values.page0 + s] + t * 512; },
                                values.page1 - values.page0, mixed + t * 256, next, true, fold.rows);
}

// The same numbers, token by token, each with the values alone that it looks at.
template <typename Unit, int Tiles>
void mix_apart(const Fold& fold, const AttendMemory& memory, const BlockValues& all, float* mixed) {
  for (int row = 0; row < fold.rows; ++row) {
    const int low = std::max(0, fold.first_of(row) - all.key0), high = std::min(kKeyBlock, fold.last_of(row) + 1 - all.key0);
    if (row == 0 || fold.last_of(row) != fold.last_of(row - 1)) {
      BlockValues mine = all;
      mine.page0 = low / KH_PAGE;
      mine.page1 = std::max(mine.page0, (high + KH_PAGE - 1) / KH_PAGE);
      for (int p = mine.page0; p < mine.page1; ++p) {
        uint16_t* room = memory.cleared + (p == mine.page0 ? 0 : static_cast<size_t>(all.tiles) * 512);
        const bool whole = low <= p * KH_PAGE && high >= (p + 1) * KH_PAGE;
        if (!whole) mine.page[p] = cleared(all.page[p], low - p * KH_PAGE, high - p * KH_PAGE, all.tiles, room);
      }
      mix<Unit, Tiles>(fold, memory, mine, memory.row);
    }
    for (int t = 0; t < all.tiles; ++t) {
      const size_t place = static_cast<size_t>(row / 16) * all.tiles * 256 + t * 256 + row % 16 * 16;
      _mm512_storeu_ps(mixed + place, _mm512_loadu_ps(memory.row + place));
    }
  }
}

// The part of one block of keys.
template <typename Unit, int Tiles>
void part_of(const Fold& fold, const AttendMemory& memory, MadeValues& made, int block, float* part) {
  const LayerPlanes& planes = fold.planes;
  const int key0 = block * kKeyBlock, chunks = (planes.key_size + 31) / 32, tiles = value_tiles(planes.value_size);
  const int end = std::min(kKeyBlock, fold.last_of(fold.rows - 1) + 1 - key0);
  BlockValues values{key0, std::max(0, fold.first_of(0) - key0) / KH_PAGE, (end + KH_PAGE - 1) / KH_PAGE, tiles, {}};
  const int32_t* pages = fold.task.pages + key0 / KH_PAGE;
  for (int p = values.page0; p < values.page1; ++p) {
    float* scales = memory.scales + p * KH_PAGE;
    const int head = fold.task.key_head;
    const uint16_t* keys = tiles_of(planes.keys_of(pages[p], head), planes.key_size, planes.coded, memory.keys, scales, scale_of(fold));
    Unit::template block<Tiles>(memory.q, chunks * 512, [keys](int c) { return keys + c * 1024; }, chunks, memory.scores + p * 512, 2048, true, fold.rows);
    uint16_t* room = memory.pages + static_cast<size_t>(p) * tiles * 512;
    if (!planes.values_in_keys) {
      values.page[p] = tiles_of(planes.values_of(pages[p], head), planes.value_size, planes.coded, room, scales + kKeyBlock, _mm512_set1_ps(1.0f));
      continue;
    }
    if (made.block != block) made = {block, 0};
    if (p >= made.pages) keys_as_value_tiles(keys, tiles, room), made.pages = p + 1;
    values.page[p] = room;
  }
  float* mixed = part + 2 * kFoldedRows;
  if (planes.coded) {
    // Codes are numbers whatever they were made of, and a share of zero makes zero of them.
    weigh<true>(fold, memory, key0, part);
    return mix<Unit, Tiles>(fold, memory, values, mixed);
  }
  weigh<false>(fold, memory, key0, part);
  // What lies behind the last token belongs to nobody yet.
  const uint16_t*& last = values.page[values.page1 - 1];
  const uint16_t* whole = last;
  if (end % KH_PAGE) last = cleared(last, 0, end % KH_PAGE, tiles, memory.cleared);
  if (!must_part(fold, values)) return mix<Unit, Tiles>(fold, memory, values, mixed);
  last = whole;
  mix_apart<Unit, Tiles>(fold, memory, values, mixed);
}

// total ← total and part together; the first part is the total.
template <int Tiles>
void join(const Fold& fold, const float* part, float* total, bool first) {
  const int tiles = value_tiles(fold.planes.value_size);
  const __m512 nothing = _mm512_set1_ps(-INFINITY);
  alignas(64) float keep[kFoldedRows], take[kFoldedRows];
  for (int t = 0; t < Tiles; ++t) {
    const int at = 16 * t;
    const __m512 old = first ? nothing : _mm512_loadu_ps(total + at), fresh = _mm512_loadu_ps(part + at), top = _mm512_max_ps(old, fresh);
    const __m512 a = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(old, nothing, _CMP_NEQ_UQ), power16(_mm512_sub_ps(old, top)));
    const __m512 b = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(fresh, nothing, _CMP_NEQ_UQ), power16(_mm512_sub_ps(fresh, top)));
    const __m512 mass = first ? _mm512_setzero_ps() : _mm512_loadu_ps(total + kFoldedRows + at);
    _mm512_storeu_ps(total + at, top);
    _mm512_storeu_ps(total + kFoldedRows + at, _mm512_fmadd_ps(_mm512_loadu_ps(part + kFoldedRows + at), b, _mm512_mul_ps(mass, a)));
    _mm512_store_ps(keep + at, a);
    _mm512_store_ps(take + at, b);
  }
  const float* from = part + 2 * kFoldedRows;
  float* to = total + 2 * kFoldedRows;
  for (int row = 0; row < fold.rows; ++row) {
    const __m512 a = _mm512_set1_ps(keep[row]), b = _mm512_set1_ps(take[row]);
    const size_t place = static_cast<size_t>(row / 16) * tiles * 256 + row % 16 * 16;
    for (int t = 0; t < tiles; ++t) {
      const __m512 old = first ? _mm512_setzero_ps() : _mm512_mul_ps(_mm512_loadu_ps(to + place + 256 * t), a);
      _mm512_storeu_ps(to + place + 256 * t, _mm512_fmadd_ps(_mm512_loadu_ps(from + place + 256 * t), b, old));
    }
  }
}

inline void write_rows(const Fold& fold, const float* total) {
  const int size = fold.planes.value_size, tiles = value_tiles(size);
  for (int row = 0; row < fold.rows; ++row) {
    const __m512 mass = _mm512_set1_ps(total[kFoldedRows + row]);
    const float* mixed = total + 2 * kFoldedRows + static_cast<size_t>(row / 16) * tiles * 256 + row % 16 * 16;
    for (int i = 0; i < size; i += 16) _mm512_mask_storeu_ps(fold.out(row) + i, tail_mask(size - i), _mm512_div_ps(_mm512_loadu_ps(mixed + i * 16), mass));
  }
}

template <typename Unit, int Tiles>
void attend_fold(const Fold& fold, const AttendMemory& memory) {
  const AttendTask& task = fold.task;
  MadeValues made;
  if (!task.joins) load_queries(fold, memory.q);
  const int first = task.parts ? task.block0 : fold.first_of(0) / kKeyBlock;
  const int last = task.parts ? task.block1 : fold.last_of(fold.rows - 1) / kKeyBlock + 1;
  for (int block = first; block < last; ++block) {
    float* part = task.parts ? task.parts + (block - task.block0) * part_floats(fold.planes.value_size) : memory.part;
    if (!task.joins) part_of<Unit, Tiles>(fold, memory, made, block, part);
    if (task.joins || !task.parts) join<Tiles>(fold, part, memory.total, block == first);
  }
  if (task.joins || !task.parts) write_rows(fold, memory.total);
}

template <typename Unit, int Tiles>
void attend_block(const Fold& fold, const AttendMemory& memory, MadeValues& made, int block) {
  if (block == 0) load_queries(fold, memory.q);
  if (block > fold.last_of(fold.rows - 1) / kKeyBlock) return;
  part_of<Unit, Tiles>(fold, memory, made, block, memory.part);
  join<Tiles>(fold, memory.part, memory.total, block == 0);
}

// Folds take turns at a block of keys, so that values are made of it once. There is no window.
template <typename Unit>
void attend_folds(const LayerPlanes& planes, const AttendTask& task, int row0, int rows, const AttendMemory& memory) {
  const auto fold_of = [&](int number) { return Fold(planes, task, row0 + number * kFoldedRows, std::min(kFoldedRows, rows - number * kFoldedRows)); };
  const int folds = (rows + kFoldedRows - 1) / kFoldedRows, last = (task.position + (row0 + rows - 1) / task.group) / kKeyBlock;
  MadeValues made;
  for (int block = 0; block <= last; ++block)
    for (int number = 0; number < folds; ++number) {
      const Fold fold = fold_of(number);
      if (fold.rows > 16) attend_block<Unit, 2>(fold, memory.of_fold(number), made, block);
      else attend_block<Unit, 1>(fold, memory.of_fold(number), made, block);
    }
  for (int number = 0; number < folds; ++number) write_rows(fold_of(number), memory.of_fold(number).total);
}

template <typename Unit>
void attend(const LayerPlanes& planes, const AttendTask& task, Scratch& scratch) {
  const AttendMemory memory(scratch.data, planes.key_size, planes.value_size);
  Unit::begin();
  const int all = task.rows * task.group, together = kFoldsTogether * kFoldedRows;
  for (int row = 0; planes.values_in_keys && all > kFoldedRows && row < all; row += together)
    attend_folds<Unit>(planes, task, row, std::min(together, all - row), memory);
  for (int row = 0; (!planes.values_in_keys || all <= kFoldedRows) && row < all; row += kFoldedRows) {
    const Fold fold(planes, task, row, std::min(kFoldedRows, all - row));
    if (fold.rows > 16) attend_fold<Unit, 2>(fold, memory);
    else attend_fold<Unit, 1>(fold, memory);
  }
  Unit::end();
}

}  // namespace
}  // namespace kh
