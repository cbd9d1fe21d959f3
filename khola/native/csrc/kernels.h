// The table of kernels: one per instruction set, compiled from its own file with its own flags, chosen once at run time.
//
// A row belongs to an answer or to a prompt. Answers come a few rows at a time (decode, speculation): their rows are quantised to int8 in
// groups of 32 inputs and multiplied with the codes as they are stored, so that the step costs one reading of the weights. Prompts come in
// many rows, which are rounded to bfloat16 and multiplied with weights expanded to bfloat16, a panel of 32 outputs at a time. Which of the
// two is decided by what the token is, never by how many rows a step has, and the sum over K is taken in one fixed order that depends
// neither on the number of rows nor on threads: a row's result does not depend on what else is in the step.
//
// Precise kernels round no input; for them rows are all alike. See precise.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kh.h"

namespace kh {

constexpr int kStrip = 32;       // outputs of a strip pair
constexpr int kDeep = 64;        // inputs of a tile
constexpr int kFewRows = 16;     // int8 rows of a block
constexpr int kGroup = 32;       // inputs that share an activation scale
constexpr int kSumGroup = 16;    // inputs that share an activation sum
constexpr int kKeyBlock = 128;   // keys of one part of an attention
constexpr int kFoldsTogether = 4;  // times 32 rows and heads, of an attention whose values are made of its keys
constexpr int kTop = 64;         // blocks of logits that are looked at as one

// The input of one matrix product. Int8 rows: q, scale, sum (or rows16 for 16-bit weights). Bfloat16 rows: tiles. Where nothing is rounded:
// plain alone. How q, scale, sum and plain are ordered is each table's own business: it fills and reads them.
struct Operand {
  int rows = 0, k_pad = 0;
  int8_t* q = nullptr;          // rows · k_pad
  float* scale = nullptr;       // rows · k_pad / 32
  int32_t* sum = nullptr;       // at most three for every 32 of q: sums of the first 16, the last 16, all of them
  uint16_t* rows16 = nullptr;   // [rows][k_pad] bfloat16
  uint16_t* tiles = nullptr;    // [ceil(rows / 16)][k_pad / 32][16][32] bfloat16, rows beyond the last are zero
  float* plain = nullptr;       // rows · k_pad

  // The int8 and the plain rows lie in blocks of sixteen, each an operand by itself.
  Operand block(int number) const {
    Operand one = *this;
    const size_t numbers = static_cast<size_t>(number) * kFewRows * k_pad;
    one.rows = std::min(rows - number * kFewRows, kFewRows);
    one.q += numbers;
    one.scale += numbers / kGroup;
    one.sum += numbers / kGroup * 3;
    one.rows16 += numbers;
    one.plain += numbers;
    return one;
  }
};

// How rows are normed on their way into an operand; weight == nullptr: not at all.
struct Norm {
  const float* weight = nullptr;
  float epsilon = 0, offset = 0;
};

// A part of some rows: rows [row0, row1), and of each of them the inputs [input0, input1), which are multiples of 64.
struct Part {
  int row0, row1, input0, input1;
};

// What happens to a finished block of 32 outputs (16 when gated).
struct Epilogue {
  const float* bias = nullptr;     // [n_pad]
  const float* add = nullptr;      // [rows][add_stride], may be out itself
  float* out = nullptr;            // [rows][out_stride]
  float* block_max = nullptr;      // [rows][ceil(n / 32)], only for the head; NaN where one of the 32 is not finite
  uint16_t* tiles = nullptr;       // where gated rows go instead of out: an operand's tiles, of tile_steps each
  const int32_t* rows = nullptr;   // row r of the operand is row rows[r] of add, out and block_max; nullptr: r itself
  int add_stride = 0, out_stride = 0;
  int n = 0;                       // outputs as on disk: columns beyond are not stored
  int max_stride = 0, tile_steps = 0;
  bool gated = false;
  size_t row_of(int r) const { return static_cast<size_t>(rows ? rows[r] : r); }
};

// Memory of one thread: enough for the largest panel and block of the program, 64-byte aligned.
struct Scratch {
  uint8_t* data = nullptr;
  size_t bytes = 0;
};

// Keys and values of one layer, in pages; of a page, one key head after another. The numbers of a head lie in tiles of a matrix unit, which serve
// a vector unit with broadcast pairs as well: keys [E / 32][2][16 pairs of E][16 tokens][2], values [E / 16][16 pairs of tokens][16][2], E
// padded to 32. They are bfloat16; or codes of 8 bits, -127 .. 127, and behind them the scale of each token in bfloat16: number = code · scale.
// Numbers that stay float32 lie as precise_attend.h says.
struct LayerPlanes {
  uint8_t* keys = nullptr;
  uint8_t* values = nullptr;
  int heads = 0, key_size = 0, value_size = 0;
  bool coded = false, plain = false;
  // What codes of keys are made of is divided by these powers of two, and queries are multiplied with them: [G][E padded to 32]; nullptr: by 1.
  const float* key_steps = nullptr;
  // Values are the first value_size numbers of the keys, and not kept besides. Not with codes.
  bool values_in_keys = false;

  const float* steps_of(int head) const { return key_steps ? key_steps + static_cast<size_t>(head) * ((key_size + 31) / 32 * 32) : nullptr; }
  static size_t numbers(int size) { return static_cast<size_t>((size + 31) / 32 * 32) * KH_PAGE; }  // of one head in a page
  size_t head_bytes(int size) const {
    return coded ? numbers(size) + sizeof(uint16_t) * KH_PAGE : numbers(size) * (plain ? sizeof(float) : sizeof(uint16_t));
  }
  size_t key_page() const { return heads * head_bytes(key_size); }
  size_t value_page() const { return heads * head_bytes(value_size); }
  uint8_t* keys_of(int32_t page, int head) const { return keys + page * key_page() + head * head_bytes(key_size); }
  uint8_t* values_of(int32_t page, int head) const { return values + page * value_page() + head * head_bytes(value_size); }
  // Behind the codes of a head.
  static uint16_t* scales_of(uint8_t* codes, int size) { return reinterpret_cast<uint16_t*>(codes + numbers(size)); }
};

// Attention of the rows [row0, row1) of one sequence, all query heads of one key head.
struct AttendTask {
  const float* q;    // row row0, head 0 of this key head's group; already turned
  float* out;        // same place in the output
  int q_stride, out_stride;
  int rows, group;   // query heads a key head
  int position;      // of row row0 in its sequence
  int window;        // 0: none
  float scale;
  const int32_t* pages;
  int key_head;
  // A long attention is taken apart: several threads make the parts of some blocks of keys, [block0, block1), and one joins them all.
  float* parts = nullptr;  // part of block0 and the following ones; nullptr: the whole attention at once
  int block0 = 0, block1 = 0;
  bool joins = false;      // the parts are made, join them
};

using ToForm = void (*)(const float* x, int stride, int k, const Norm&, Operand&, const Part&);

// Multiplications without memory, of one kind: see rates.h.
struct Rate {
  const char* name = nullptr;                 // nullptr: there is none
  int64_t (*multiply)(int64_t rounds) = nullptr;  // gives the operations that so many rounds are
};

struct Kernels {
  const char* name;
  // A part of the rows of x, normed, into the int8 form; or into bfloat16 rows; or into tiles, whose rows from row1 to the next multiple of
  // 16 become zero. Inputs from k on are zero.
  ToForm to_int8, to_rows16, to_tiles;
  // Strip pairs [pair0, pair1) of out ← operand · weightᵀ, for at most few_blocks blocks of int8 rows, and for any number of rows in tiles.
  void (*few)(const kh_weight&, const Operand&, int pair0, int pair1, const Epilogue&, Scratch&);
  void (*many)(const kh_weight&, const Operand&, int pair0, int pair1, const Epilogue&, Scratch&);
  size_t (*many_scratch)(int k_pad, int rows);
  // x[heads][size] of one row, turned in place by cosines and sines of half the rotated width.
  void (*rotate)(float* x, int heads, int size, const float* cosine, const float* sine, int half);
  // One token's keys and values (G heads one after another) into place `token` of a page.
  void (*store)(const LayerPlanes&, const float* k, const float* v, int32_t page, int token);
  void (*attend)(const LayerPlanes&, const AttendTask&, Scratch&);
  size_t (*attend_scratch)(int group, int key_size, int value_size);
  // Floats of one part of at most 32 rows · group, or nullptr where attention cannot be taken apart.
  size_t (*part_floats)(int value_size);
  // rows of a packed table
  void (*table_row)(const kh_weight&, int row, float* out);
  void (*rms_norm)(const float* x, int n, const Norm&, float* out);
  void (*silu_mul)(const float* gate, const float* up, int n, float* out);
  int few_blocks = 1;
  // As `few`, of a split matrix by its high nibbles alone, for a handful of rows; nullptr where `few` is as quick or knows no split matrices.
  void (*few_high)(const kh_weight&, const Operand&, int pair0, int pair1, const Epilogue&, Scratch&) = nullptr;
  bool gates_into_tiles = false;  // `many` knows Epilogue::tiles
  Rate rates[2] = {};             // of the units that the others of its processors do not have
  bool precise = false;           // operands are plain, and so are keys and values
};

// nullptr where this build or processor lacks it; `scalar` always exists.
const Kernels* kernels_scalar();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512();
const Kernels* kernels_amx();
const Kernels* kernels_neon();
const Kernels* kernels_dotprod();
const Kernels* chosen();

// Finish a block of `rows` × 32 results whose first output is 32 · pair; block has row stride kStrip. Portable, inlined everywhere.
void finish_portable(const Epilogue&, const float* block, int row0, int rows, int pair);

}  // namespace kh
