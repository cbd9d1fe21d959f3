// Panels, and what happens when two of them meet; for the files that compile train.h's kernels.
#pragma once

#include <cmath>
#include <cstring>

#include "exponential.h"
#include "train.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define KH_TRAIN_512
#include "power512.h"
#endif

namespace kh {
namespace {

constexpr int kLane = 16;
typedef float Lane __attribute__((vector_size(kLane * sizeof(float)), may_alias));
typedef int32_t Ints __attribute__((vector_size(kLane * sizeof(int32_t)), may_alias));
typedef uint32_t Words __attribute__((vector_size(kLane * sizeof(uint32_t)), may_alias));

inline int lesser(int a, int b) { return a < b ? a : b; }
inline int greater(int a, int b) { return a > b ? a : b; }

template <typename Vector>
[[gnu::always_inline]] inline void get(const void* from, Vector& to) {
  std::memcpy(&to, from, sizeof(to));
}
[[gnu::always_inline]] inline void put(float* to, const Lane& v) { std::memcpy(to, &v, sizeof(v)); }

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// x ← 2 to the power x; far below the least exponent, next to nothing.
[[gnu::always_inline]] inline void power(Lane& x) {
#ifdef KH_TRAIN_512
  x = reinterpret_cast<Lane>(power16(reinterpret_cast<__m512>(x)));
#else
  x *= kLn2;
  exponentiate<Lane, Ints, Words>(x);
#endif
}

// top ← the greater of both
[[gnu::always_inline]] inline void raise(const Lane& x, Lane& top) {
#ifdef KH_TRAIN_512
  top = reinterpret_cast<Lane>(_mm512_max_ps(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(top)));
#else
  choose<Lane, Ints>(x > top, x, top, top);
#endif
}

inline float total(const Lane& x) {
  float sum = 0;
  for (int i = 0; i < kLane; ++i) sum += x[i];
  return sum;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline uint16_t narrow(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

// Sixteen numbers, or `count` of them and zeros.
[[gnu::always_inline]] inline void widen(const uint16_t* from, int count, Lane& to) {
#ifdef KH_TRAIN_512
  const __mmask16 some = count >= kLane ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
  to = reinterpret_cast<Lane>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from)), 16));
#else
  float wide[kLane] = {};
  for (int i = 0; i < lesser(count, kLane); ++i) wide[i] = widen(from[i]);
  get(wide, to);
#endif
}

[[gnu::always_inline]] inline void narrow(const Lane& from, int count, uint16_t* to) {
#ifdef KH_TRAIN_512
  const __mmask16 some = count >= kLane ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
  _mm256_mask_storeu_epi16(to, some, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(from))));
#else
  for (int i = 0; i < lesser(count, kLane); ++i) to[i] = narrow(from[i]);
#endif
}

[[gnu::always_inline]] inline void floats(const float* from, int count, Lane& to) {
  if (count >= kLane) {
    get(from, to);
    return;
  }
  to = Lane{};
  for (int i = 0; i < count; ++i) to[i] = from[i];
}

[[gnu::always_inline]] inline void floats(const Lane& from, int count, float* to) {
  if (count >= kLane) put(to, from);
  else
    for (int i = 0; i < count; ++i) to[i] = from[i];
}

// Words whose low halves are `low` and whose high halves are `high`, both rounded.
[[gnu::always_inline]] inline void words(const Lane& low, const Lane& high, uint16_t* to) {
#ifdef KH_TRAIN_512
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512bh both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low));
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(both)));
#else
  for (int i = 0; i < kLane; ++i) {
    to[2 * i] = narrow(low[i]);
    to[2 * i + 1] = narrow(high[i]);
  }
#endif
}

// 16 × 16 words, rows and columns exchanged.
#ifdef KH_TRAIN_512
inline void transpose(__m512i* r) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd), d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    t[j] = _mm512_shuffle_i32x4(a, b, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
    t[4 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}
#endif

inline void transpose(const void* from, void* to) {
#ifdef KH_TRAIN_512
  __m512i r[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(static_cast<const uint32_t*>(from) + i * 16);
  transpose(r);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(static_cast<uint32_t*>(to) + i * 16, r[i]);
#else
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) std::memcpy(static_cast<uint32_t*>(to) + j * 16 + i, static_cast<const uint32_t*>(from) + i * 16 + j, 4);
#endif
}

#ifdef KH_TRAIN_512
inline __mmask16 few(int count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1); }

// `count` of sixteen neighbouring numbers, as bfloat16.
[[gnu::always_inline]] inline __m256i neighbours(const kh_side& s, int64_t at, int count) {
  if (s.type == KH_BFLOAT16) return _mm256_maskz_loadu_epi16(few(count), static_cast<const uint16_t*>(s.data) + at);
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(few(count), static_cast<const float*>(s.data) + at)));
}
#else
inline uint16_t number(const kh_side& s, int64_t at) {
  return s.type == KH_BFLOAT16 ? static_cast<const uint16_t*>(s.data)[at] : narrow(static_cast<const float*>(s.data)[at]);
}
#endif

// One tile of a panel: `rows` of 16 from `first`, `deep` of 32 from `k`.
[[gnu::always_inline]] inline void pack_tile(const kh_side& s, int64_t first, int rows, int64_t k, int deep, bool right, uint16_t* out) {
#ifdef KH_TRAIN_512
  __m512i r[16];
  if (s.deep == 1) {
    for (int i = 0; i < 16; ++i) {
      const int64_t at = (first + i) * s.row + k;
      r[i] = i < rows ? _mm512_inserti64x4(_mm512_castsi256_si512(neighbours(s, at, deep)), neighbours(s, at + 16, deep - 16), 1) : _mm512_setzero_si512();
    }
  } else {
    for (int p = 0; p < 16; ++p) {
      const int64_t at = (k + 2 * p) * s.deep + first;
      const __m512i low = _mm512_cvtepu16_epi32(neighbours(s, at, 2 * p < deep ? rows : 0));
      const __m512i high = _mm512_cvtepu16_epi32(neighbours(s, at + s.deep, 2 * p + 1 < deep ? rows : 0));
      r[p] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }
  }
  if (right == (s.deep == 1)) transpose(r);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * 32, r[i]);
#else
  for (int i = 0; i < 16; ++i)
    for (int d = 0; d < 32; ++d) {
      const uint16_t x = i < rows && d < deep ? number(s, (first + i) * s.row + (k + d) * s.deep) : 0;
      out[right ? (d / 2) * 32 + i * 2 + d % 2 : i * 32 + d] = x;
    }
#endif
}

void pack(const kh_side& s, int64_t first, int rows, int k, bool right, uint16_t* out) {
  for (int deep = 0; deep < k; deep += kSide)
    for (int half = 0; half < 2; ++half, out += 512) pack_tile(s, first + 16 * half, rows - 16 * half, deep, lesser(k - deep, kSide), right, out);
}

// Rows of 32 sums that are still to be stored.
struct Lines {
  const float* sums = nullptr;
  uint8_t* out = nullptr;
  int64_t stride = 0;  // bytes
  int row = 0, rows = 0;
  bool wide = false;  // float32

  [[gnu::always_inline]] inline void one() {
    const float* at = sums + row / 16 * 512 + row % 16 * 16;
    Lane x, y;
    get(at, x);
    get(at + 256, y);
    if (wide) {
      std::memcpy(out, &x, sizeof(x));
      std::memcpy(out + sizeof(x), &y, sizeof(y));
    } else {
#ifdef KH_TRAIN_512
      _mm512_storeu_si512(out, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(y), reinterpret_cast<__m512>(x))));
#else
      narrow(x, kLane, reinterpret_cast<uint16_t*>(out));
      narrow(y, kLane, reinterpret_cast<uint16_t*>(out) + kLane);
#endif
    }
    out += stride;
    ++row;
  }
  void rest() {
    while (row < rows) one();
  }
};

#ifndef KH_TRAIN_TILES
inline void begin() {}
inline void end() {}

// sums [2][2][16][16] ← (sums +) left panel · right panel; steps of a panel lie behind each other.
void meet(const uint16_t* left, const uint16_t* right, int steps, float* sums, bool add, Lines* waiting = nullptr) {
  if (waiting) waiting->rest();
#ifdef KH_TRAIN_512
  for (int row = 0; row < 32; row += 8) {
    float* to = sums + row / 16 * 512 + row % 16 * 16;
    const uint16_t* from = left + row / 16 * 512 + row % 16 * 32;
    __m512 sum[8][2];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
      for (int side = 0; side < 2; ++side) sum[r][side] = add ? _mm512_loadu_ps(to + side * 256 + r * 16) : _mm512_setzero_ps();
    for (int s = 0; s < steps; ++s)
      for (int p = 0; p < 16; ++p) {
        const __m512bh one = reinterpret_cast<__m512bh>(_mm512_loadu_si512(right + s * kPair + p * 32));
        const __m512bh other = reinterpret_cast<__m512bh>(_mm512_loadu_si512(right + s * kPair + 512 + p * 32));
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) {
          int32_t two;
          std::memcpy(&two, from + s * kPair + r * 32 + p * 2, 4);
          const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], one, x);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], other, x);
        }
      }
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
      for (int side = 0; side < 2; ++side) _mm512_storeu_ps(to + side * 256 + r * 16, sum[r][side]);
  }
#else
  for (int row = 0; row < 32; ++row)
    for (int side = 0; side < 2; ++side) {
      float* to = sums + row / 16 * 512 + side * 256 + row % 16 * 16;
      const uint16_t* from = left + row / 16 * 512 + row % 16 * 32;
      Lane sum{};
      if (add) get(to, sum);
      for (int s = 0; s < steps; ++s)
        for (int p = 0; p < 16; ++p) {
          Words both;
          get(right + s * kPair + side * 512 + p * 32, both);
          sum += reinterpret_cast<Lane>(both << 16) * widen(from[s * kPair + 2 * p]);
          sum += reinterpret_cast<Lane>(both & 0xffff0000u) * widen(from[s * kPair + 2 * p + 1]);
        }
      put(to, sum);
    }
#endif
}
#endif

}  // namespace
}  // namespace kh
