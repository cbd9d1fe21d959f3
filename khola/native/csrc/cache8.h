// How eight lanes write the tokens of a page and read them again, as bfloat16 or as codes. Nothing here has external linkage.
#pragma once

#include "cached.h"
#include "vector8.h"

namespace kh {
namespace {

// Keys: pairs of inputs go to one column of their tile, lines of 64 bytes apart.
inline void store_keys(uint8_t* head, const float* x, int size, int token) {
  uint16_t* keys = reinterpret_cast<uint16_t*>(head) + key_place(token, 0);
  alignas(32) uint16_t numbers[32];
  for (int i = 0; i < size; i += 32, keys += 1024) {
    for (int j = 0; j < 32; j += 8) store_bfloat(numbers + j, normed8(x, i + j, size, Norm{}, zeros()));
    for (int pair = 0; pair < 16; ++pair) std::memcpy(keys + 32 * pair, numbers + 2 * pair, 4);
  }
}

// Values: every second number of a line, the others stay.
inline void store_values(uint8_t* head, const float* x, int size, int token) {
  uint16_t* values = reinterpret_cast<uint16_t*>(head) + value_place(token, 0);
  alignas(32) uint16_t numbers[16];
  for (int i = 0; i < size; i += 16, values += 512) {
    for (int j = 0; j < 16; j += 8) store_bfloat(numbers + j, normed8(x, i + j, size, Norm{}, zeros()));
    for (int j = 0; j < 16; ++j) values[2 * j] = numbers[j];
  }
}

// Eight numbers, divided by their steps where there are any; beyond the end of the row zeros.
inline F8 number8(const float* x, const float* steps, int i, int size) {
  const F8 v = normed8(x, i, size, Norm{}, zeros());
  return steps ? div(v, load(steps + i)) : v;
}

inline CodeScale code_scale(const float* x, const float* steps, int size) {
  F8 greatest = zeros(), doubt = zeros();
  for (int i = 0; i < size; i += 8) {
    const F8 v = number8(x, steps, i, size);
    greatest = most(greatest, magnitude(v));
    // Zero times what is no number, or infinite, is NaN; the greatest magnitude alone may hide one.
    doubt = fma(v, zeros(), doubt);
  }
  return CodeScale(sum_of(doubt) == 0.0f ? most_of(greatest) : NAN);
}

// Sixteen codes; beyond the end of the row zeros.
inline void store_codes16(int8_t* out, const float* x, const float* steps, int i, int size, const CodeScale& scale) {
  const F8 inverse = all(scale.inverse);
  const auto codes = [&](int at) { return scale.inverse > 0 ? nearest(mul(number8(x, steps, at, size), inverse)) : all(int32_t{0}); };
  store_bytes(out, codes(i), codes(i + 8));
}

// As store_keys and store_values, in codes.
inline void store_key_codes(uint8_t* head, const float* x, const float* steps, int size, int token) {
  const CodeScale scale = code_scale(x, steps, size);
  uint8_t* keys = head + key_place(token, 0);
  int8_t codes[32];
  for (int i = 0; i < size; i += 32, keys += 1024) {
    for (int j = 0; j < 32; j += 16) store_codes16(codes + j, x, steps, i + j, size, scale);
    for (int pair = 0; pair < 16; ++pair) std::memcpy(keys + 32 * pair, codes + 2 * pair, 2);
  }
  LayerPlanes::scales_of(head, size)[token] = scale.kept;
}

inline void store_value_codes(uint8_t* head, const float* x, int size, int token) {
  const CodeScale scale = code_scale(x, nullptr, size);
  uint8_t* values = head + value_place(token, 0);
  int8_t codes[16];
  for (int i = 0; i < size; i += 16, values += 512) {
    store_codes16(codes, x, nullptr, i, size, scale);
    for (int j = 0; j < 16; ++j) values[2 * j] = static_cast<uint8_t>(codes[j]);
  }
  LayerPlanes::scales_of(head, size)[token] = scale.kept;
}

void store(const LayerPlanes& p, const float* k, const float* v, int32_t page, int token) {
  store_heads<store_keys, store_values, store_key_codes, store_value_codes>(p, k, v, page, token);
}

// The numbers of one head in a page as tiles of bfloat16: as they lie, or its codes, which bfloat16 holds exactly, expanded into `room`, with
// the scale of each token in `scales`.
inline const uint16_t* tiles_of(uint8_t* head, int size, bool coded, uint16_t* room, float* scales) {
  if (!coded) return reinterpret_cast<const uint16_t*>(head);
  for (size_t i = 0; i < LayerPlanes::numbers(size); i += 16) store_codes_bfloat(room + i, head + i);
  for (int token = 0; token < KH_PAGE; ++token) scales[token] = from_bfloat(LayerPlanes::scales_of(head, size)[token]);
  return room;
}

}  // namespace
}  // namespace kh
