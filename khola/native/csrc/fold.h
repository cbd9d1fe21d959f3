// What attention in blocks of keys works on: query rows and the query heads of one key head, folded into rows; and the parts that its blocks
// of keys give. For every instruction set whose rows lie one after another. Nothing here has external linkage.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace kh {
namespace {

constexpr int kFoldedRows = 32;  // rows of a part
constexpr int kPagesInBlock = kKeyBlock / KH_PAGE;

inline int padded(int size) { return (size + 31) / 32 * 32; }

// Floats of a part: greatest[32], mass[32], mixed[32][padded value size].
inline size_t part_floats(int value_size) { return 2 * kFoldedRows + static_cast<size_t>(kFoldedRows) * padded(value_size); }

// Folded rows [row0, row0 + rows) of a task: row i is token i / group, query head i % group.
struct Fold {
  const LayerPlanes& planes;
  const AttendTask& task;
  int row0, rows;

  int last_of(int row) const { return task.position + (row0 + row) / task.group; }
  int first_of(int row) const { return task.window ? std::max(0, last_of(row) - task.window + 1) : 0; }
  const float* q(int row) const { return task.q + static_cast<size_t>((row0 + row) / task.group) * task.q_stride + (row0 + row) % task.group * planes.key_size; }
  float* out(int row) const {
    return task.out + static_cast<size_t>((row0 + row) / task.group) * task.out_stride + (row0 + row) % task.group * planes.value_size;
  }
};

}  // namespace
}  // namespace kh
