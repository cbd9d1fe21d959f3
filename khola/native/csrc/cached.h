// Where each number of a page of the cache lies, and how numbers become codes of 8 bits; see LayerPlanes. The vector kernels know the order
// by heart and are tested against these functions.
#pragma once

#include <cfloat>
#include <cmath>

#include "kernels.h"
#include "layout.h"

// Without external linkage: a copy that was compiled with one instruction set's options must not serve the others.
namespace kh {
namespace {

inline size_t key_place(int token, int i) { return static_cast<size_t>(i / 32 * 2 + token / 16) * 512 + (i % 32 / 2 * 16 + token % 16) * 2 + i % 2; }
inline size_t value_place(int token, int i) { return static_cast<size_t>(i / 16) * 512 + (token / 2 * 16 + i % 16) * 2 + token % 2; }

// What the numbers of one token and key head are divided by. It is rounded to bfloat16 before they are, so that it costs no accuracy: at most
// 2^-9 too small, it leaves the greatest code at 127.25, which is 127. Numbers that are not all finite must not come out as if they were: their
// scale says so, and their codes are zero. So are those of numbers so small that the inverse would overflow.
struct CodeScale {
  uint16_t kept;  // bfloat16
  float inverse;  // 0 where all codes are zero

  // From the greatest magnitude, which is not finite where one of the numbers is not.
  explicit CodeScale(float greatest) : kept(to_bfloat(std::isfinite(greatest) ? greatest / 127.0f : NAN)) {
    const float scale = from_bfloat(kept);
    inverse = scale >= FLT_MIN ? 1.0f / scale : 0.0f;
  }
};

// The keys and values of a token, head by head, with an instruction set's ways to write one head as bfloat16 or as codes.
template <auto Keys, auto Values, auto KeyCodes, auto ValueCodes>
void store_heads(const LayerPlanes& p, const float* k, const float* v, int32_t page, int token) {
  for (int head = 0; head < p.heads; ++head, k += p.key_size, v += p.value_size) {
    uint8_t *keys = p.keys_of(page, head), *values = p.values_of(page, head);
    if (p.coded) {
      KeyCodes(keys, k, p.steps_of(head), p.key_size, token);
      ValueCodes(values, v, p.value_size, token);
    } else {
      Keys(keys, k, p.key_size, token);
      Values(values, v, p.value_size, token);
    }
  }
}

}  // namespace
}  // namespace kh
