// How AVX-512 writes the tokens of a page and reads them again, as bfloat16 or as codes. Nothing here has external linkage.
#pragma once

#include "cached.h"
#include "vector512.h"

namespace kh {
namespace {

// Keys: pairs of inputs go to one column of their tile, lines of 64 bytes apart.
inline void store_keys(uint8_t* head, const float* x, int size, int token) {
  const __m512i lines = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(64));
  uint16_t* keys = reinterpret_cast<uint16_t*>(head) + key_place(token, 0);
  for (int i = 0; i < size; i += 32, keys += 1024) {
    const __m512 a = _mm512_maskz_loadu_ps(tail_mask(size - i), x + i), b = _mm512_maskz_loadu_ps(tail_mask(size - i - 16), x + i + 16);
    _mm512_i32scatter_epi32(keys, lines, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)), 1);
  }
}

// Values: every second number of a line, the others stay.
inline void store_values(uint8_t* head, const float* x, int size, int token) {
  const __mmask32 half = token % 2 ? 0xaaaaaaaa : 0x55555555;
  uint16_t* values = reinterpret_cast<uint16_t*>(head) + token / 2 * 32;
  for (int i = 0; i < size; i += 16, values += 512) {
    const __m512i wide = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(tail_mask(size - i), x + i))));
    _mm512_mask_storeu_epi16(values, half, token % 2 ? _mm512_slli_epi32(wide, 16) : wide);
  }
}

// Sixteen numbers, divided by their steps where there are any; beyond the end of the row zeros.
inline __m512 number16(const float* x, const float* steps, int i, int size) {
  const __mmask16 mask = tail_mask(size - i);
  const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
  return steps ? _mm512_maskz_div_ps(mask, v, _mm512_maskz_loadu_ps(mask, steps + i)) : v;
}

inline CodeScale code_scale(const float* x, const float* steps, int size) {
  // As integers, magnitudes keep their order, and what is not a number comes last.
  __m512i greatest = _mm512_setzero_si512();
  for (int i = 0; i < size; i += 16) {
    const __m512i bits = _mm512_castps_si512(number16(x, steps, i, size));
    greatest = _mm512_max_epi32(greatest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
  }
  const int32_t bits = _mm512_reduce_max_epi32(greatest);
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return CodeScale(number);
}

// Sixteen codes; beyond the end of the row zeros.
inline __m128i codes16(const float* x, const float* steps, int i, int size, const CodeScale& scale) {
  const __mmask16 sound = scale.inverse > 0 ? 0xffff : 0;
  return _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(sound, _mm512_mul_ps(number16(x, steps, i, size), _mm512_set1_ps(scale.inverse))));
}

// As store_keys and store_values, in codes.
inline void store_key_codes(uint8_t* head, const float* x, const float* steps, int size, int token) {
  const CodeScale scale = code_scale(x, steps, size);
  uint8_t* keys = head + key_place(token, 0);
  for (int i = 0; i < size; i += 32, keys += 1024) {
    alignas(32) uint8_t codes[32];
    _mm_store_si128(reinterpret_cast<__m128i*>(codes), codes16(x, steps, i, size, scale));
    _mm_store_si128(reinterpret_cast<__m128i*>(codes + 16), codes16(x, steps, i + 16, size, scale));
    for (int pair = 0; pair < 16; ++pair) std::memcpy(keys + 32 * pair, codes + 2 * pair, 2);
  }
  LayerPlanes::scales_of(head, size)[token] = scale.kept;
}

inline void store_value_codes(uint8_t* head, const float* x, int size, int token) {
  const CodeScale scale = code_scale(x, nullptr, size);
  const __mmask32 half = token % 2 ? 0xaaaaaaaa : 0x55555555;
  uint8_t* values = head + token / 2 * 32;
  for (int i = 0; i < size; i += 16, values += 512) {
    const __m256i wide = _mm256_cvtepu8_epi16(codes16(x, nullptr, i, size, scale));
    _mm256_mask_storeu_epi8(values, half, token % 2 ? _mm256_slli_epi16(wide, 8) : wide);
  }
  LayerPlanes::scales_of(head, size)[token] = scale.kept;
}

void store(const LayerPlanes& p, const float* k, const float* v, int32_t page, int token) {
  store_heads<store_keys, store_values, store_key_codes, store_value_codes>(p, k, v, page, token);
}

// Codes as bfloat16, which holds them exactly; `count` is a multiple of 32. The two codes of a pair are made floats each, whose upper halves
// lie side by side again: shifts and conversions share the ports of the processor, where packing instructions would wait for one of them.
inline void expand(const uint8_t* codes, size_t count, uint16_t* out) {
  for (size_t i = 0; i < count; i += 32) {
    const __m512i pairs = _mm512_cvtepi16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(codes + i)));
    const __m512 even = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(pairs, 24), 24)), odd = _mm512_cvtepi32_ps(_mm512_srai_epi32(pairs, 8));
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    // Bit by bit: the upper half of `odd`, the lower one of `low`.
    _mm512_store_si512(out + i, _mm512_ternarylogic_epi32(_mm512_set1_epi32(static_cast<int32_t>(0xffff0000)), _mm512_castps_si512(odd), low, 0xca));
  }
}

// The numbers of one head in a page as tiles of bfloat16: as they lie, or its codes expanded into `room`, with the scale of each token times
// `factor` in `scales`.
inline const uint16_t* tiles_of(uint8_t* head, int size, bool coded, uint16_t* room, float* scales, __m512 factor) {
  if (!coded) return reinterpret_cast<const uint16_t*>(head);
  expand(head, LayerPlanes::numbers(size), room);
  const __m256i* kept = reinterpret_cast<const __m256i*>(LayerPlanes::scales_of(head, size));
  for (int i = 0; i < KH_PAGE / 16; ++i) {
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_load_si256(kept + i)), 16);
    _mm512_store_ps(scales + 16 * i, _mm512_mul_ps(_mm512_castsi512_ps(wide), factor));
  }
  return room;
}

// The first tiles of a page of keys as values: pairs of inputs of one token become pairs of tokens of one input. Four numbers, two tokens of
// two inputs, stay together: inside of them the middle two change places, and eight by eight of them rows and columns.
inline const uint16_t* keys_as_value_tiles(const uint16_t* keys, int tiles, uint16_t* out) {
  const __m512i swap = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  for (int t = 0; t < tiles; ++t)
    for (int half = 0; half < 2; ++half) {
      const uint16_t* from = keys + static_cast<size_t>(t / 2 * 2 + half) * 512 + t % 2 * 256;
      uint16_t* to = out + static_cast<size_t>(t) * 512 + half * 256;
      __m512i a[8], b[8];
      for (int i = 0; i < 8; ++i) a[i] = _mm512_shuffle_epi8(_mm512_load_si512(from + i * 32), swap);
      for (int i = 0; i < 8; i += 2) b[i] = _mm512_unpacklo_epi64(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 1]);
      // Lane l of b[2 i + j] is column 2 l + j of rows 2 i and 2 i + 1.
      for (int j = 0; j < 2; ++j) {
        const __m512i even0 = _mm512_shuffle_i64x2(b[j], b[2 + j], 0x88), odd0 = _mm512_shuffle_i64x2(b[j], b[2 + j], 0xdd);
        const __m512i even1 = _mm512_shuffle_i64x2(b[4 + j], b[6 + j], 0x88), odd1 = _mm512_shuffle_i64x2(b[4 + j], b[6 + j], 0xdd);
        _mm512_store_si512(to + j * 32, _mm512_shuffle_i64x2(even0, even1, 0x88));
        _mm512_store_si512(to + (2 + j) * 32, _mm512_shuffle_i64x2(odd0, odd1, 0x88));
        _mm512_store_si512(to + (4 + j) * 32, _mm512_shuffle_i64x2(even0, even1, 0xdd));
        _mm512_store_si512(to + (6 + j) * 32, _mm512_shuffle_i64x2(odd0, odd1, 0xdd));
      }
    }
  return out;
}

}  // namespace
}  // namespace kh
