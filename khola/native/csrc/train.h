// Kernels of a training step: written once, in tiles of 16 × 16 sums and vectors of sixteen numbers, and compiled for each instruction set by a
// file of its own. Each function is one thread's piece of work; train.cc deals the pieces out.
//
// A panel is up to 32 rows (left) or columns (right) of a matrix, rounded to bfloat16 and padded with zeros: [ceil(k / 32)][2][16][16] words
// of two numbers that are neighbours in k. Words of a left panel lie [row][word], of a right one [word][column]: so the matrix unit takes them.
#pragma once

#include <cstddef>

#include "kh.h"
#include "kh_train.h"

namespace kh {

constexpr int kSide = 32;            // rows or columns of a panel, and numbers of k in a step of it
constexpr size_t kPair = 1024;       // numbers of a step of a panel; sums of two panels that met
constexpr int kTogether = 4;         // panels of keys, or of queries, that attention takes at once
constexpr int kNormRows = 64;        // rows whose share of a weight's gradient is summed at once

constexpr int panels_of(int64_t count) { return static_cast<int>((count + kSide - 1) / kSide); }

// What all heads of a sequence meet, by key head, and where it lies.
struct AttentionPlan {
  const int32_t* first_panel = nullptr;  // of each sequence, in panels; S + 1
  int key_panels = 0, value_panels = 0;  // of a head
  uint16_t *keys = nullptr, *values = nullptr;                  // left panels of 32 tokens, over the head
  uint16_t *keys_across = nullptr, *values_across = nullptr;    // left panels of 32 numbers of the head, over the tokens
  float *key_shares = nullptr, *value_shares = nullptr;         // [H][T][E] and [H][T][F]: gradients, by query head
};

struct TrainKernels {
  void (*begin)();
  void (*end)();
  void (*pack)(const kh_side& side, int64_t first, int rows, int k, bool right, uint16_t* out);
  // Rows [first, first + rows) of a product; `left` and `sums` are memory for so many panels.
  void (*product)(const kh_product&, int first, int rows, const uint16_t* right, uint16_t* left, float* sums);
  void (*pack_head)(const kh_attention&, const AttentionPlan&, int sequence, int key_head, bool back);
  void (*attend)(const kh_attention&, const AttentionPlan&, int sequence, int head, int first_panel, int last_panel, uint8_t* memory);
  void (*attend_back)(const kh_attention&, const AttentionPlan&, int sequence, int head, uint8_t* memory);
  void (*sum_heads)(const kh_attention&, const AttentionPlan&, int first_row, int last_row);
  void (*norm)(const kh_rows&, int first, int last);
  void (*norm_back)(const kh_rows&, int first, int last, float* share);
  void (*gate)(const kh_rows&, int first, int last);
  void (*gate_back)(const kh_rows&, int first, int last);
  void (*rotate)(const kh_rows&, int first, int last);
};

size_t attend_bytes(const kh_attention&);
size_t attend_back_bytes(const kh_attention&, int most_panels);

// nullptr where this build lacks it; `scalar` always exists.
const TrainKernels* train_scalar();
const TrainKernels* train_avx2();
const TrainKernels* train_avx512();
const TrainKernels* train_amx();

}  // namespace kh
