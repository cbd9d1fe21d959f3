// Scans over a state, and short convolutions: written once, in vectors of sixteen numbers, and compiled for each instruction set by a file of
// its own, which joins products and sums where the set can. A column of a state never meets another one and sums go over keys in order, so
// the width of a vector changes no bit.
#pragma once

#include <cstddef>

namespace kh {

constexpr int kPanel = 64;  // columns of a state that are scanned together: with 128 keys they stay in a first-level cache

// Some columns of the state of one head, scanned over all new rows of one sequence.
struct ScanTask {
  const float *q = nullptr, *k = nullptr, *v = nullptr;  // first row; of v, the first of the columns
  float* out = nullptr;                                  // same place in the output
  int q_stride = 0, k_stride = 0, v_stride = 0, out_stride = 0;
  int rows = 0, keys = 0, columns = 0;  // columns: at most kPanel
  float decay = 0;                      // what the state is multiplied by before every row, without log_decay
  // The delta rule: the logarithm of what the state is multiplied by, and how much of a difference is written, of every row.
  const float *log_decay = nullptr, *share = nullptr;
  int log_decay_stride = 0, share_stride = 0;
  const float* from = nullptr;  // state before the first row, [keys][state_stride]; nullptr: zero
  float* to = nullptr;          // where the state behind the last row goes
  int state_stride = 0;
};

struct Scans {
  void (*scan)(const ScanTask&, float* memory);  // memory: scan_floats, 64-byte aligned
  // out[c] = Σ weights[j][c] · rows[j][first + c], j in order; weights of neighbouring taps lie `stride` apart
  void (*convolve)(const float* const* rows, int first, const float* weights, int stride, int taps, int columns, float* out);
};

// What a scan works in: the columns, and one query and key.
constexpr size_t scan_floats(int keys) { return static_cast<size_t>(keys) * (kPanel + 2) + kPanel; }

// nullptr where this build lacks it; `scalar` always exists.
const Scans* scans_scalar();
const Scans* scans_avx2();
const Scans* scans_avx512();
// Those that go with the kernels of this name.
const Scans& scans_for(const char* isa);

}  // namespace kh
