// What the AVX-512 and the AMX kernels share: operands, epilogues, the int8 product of few rows, rotation, norms.
// Included by files that are compiled with -mavx512f/bw/vl/dq/vnni/bf16; nothing here has external linkage.
#pragma once

#include <immintrin.h>

#include <cfloat>
#include <cmath>
#include <cstring>

#include "forms.h"
#include "power512.h"

namespace kh {
namespace {

inline __mmask16 tail_mask(int left) { return left >= 16 ? 0xffff : static_cast<__mmask16>((1u << std::max(left, 0)) - 1); }

// exp(x) to about 2 units in the last place: x = n ln 2 + r, a polynomial for e^r, and 2^n by scaling. Infinities are brought into a range
// where the result is already 0 or infinite; NaN stays NaN, because it is the second operand.
inline __m512 exp16(__m512 x) {
  x = _mm512_min_ps(_mm512_set1_ps(200.0f), _mm512_max_ps(_mm512_set1_ps(-200.0f), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.3888889e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3333333e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1666667e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666667e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

inline __m512 silu16(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

inline float norm_factor(const float* x, int n, const Norm& norm) {
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(tail_mask(n - i), x + i);
    sum = _mm512_fmadd_ps(v, v, sum);
  }
  return 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / static_cast<float>(n) + norm.epsilon);
}

// Sixteen numbers of a row, normed; beyond its end zeros.
inline __m512 normed16(const float* x, int i, int k, const Norm& norm, __m512 factor) {
  const __mmask16 mask = tail_mask(k - i);
  const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
  if (!norm.weight) return v;
  const __m512 w = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, norm.weight + i), _mm512_set1_ps(norm.offset));
  return _mm512_mul_ps(_mm512_mul_ps(v, factor), w);
}

inline __m512 factor_of(const float* row, int k, const Norm& norm) {
  return _mm512_set1_ps(norm.weight ? norm_factor(row, k, norm) : 1.0f);
}

// Eight groups of 32 inputs at once, since what makes one number out of many takes a vector through every lane it has.
constexpr int kGroupsTogether = 8;

// The greatest of each of eight vectors of numbers that are not negative, in lane g that of vector g; lanes 8 to 15 repeat them.
inline __m512i greatest_of(const __m512i (&v)[kGroupsTogether]) {
  __m512i half[4], quarter[2];
  for (int i = 0; i < 4; ++i)
    half[i] = _mm512_max_epi32(_mm512_shuffle_i32x4(v[i], v[i + 4], 0x44), _mm512_shuffle_i32x4(v[i], v[i + 4], 0xee));
  for (int i = 0; i < 2; ++i)
    quarter[i] = _mm512_max_epi32(_mm512_shuffle_i32x4(half[2 * i], half[2 * i + 1], 0x88), _mm512_shuffle_i32x4(half[2 * i], half[2 * i + 1], 0xdd));
  __m512i m = _mm512_max_epi32(_mm512_unpacklo_epi32(quarter[0], quarter[1]), _mm512_unpackhi_epi32(quarter[0], quarter[1]));
  m = _mm512_max_epi32(m, _mm512_shuffle_epi32(m, _MM_PERM_BADC));
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 8, 1, 9, 4, 12, 5, 13, 0, 8, 1, 9, 4, 12, 5, 13), m);
}

// Scales of groups by their greatest magnitudes, and what their numbers are multiplied with. A group that is not a number must not come out
// as one: its scale says so, and its codes are zero. So are those of numbers so small that the inverse would overflow.
struct GroupScales {
  alignas(64) float scale[16], inverse[16];
  __mmask16 sound;

  explicit GroupScales(__m512i greatest) {
    sound = _mm512_cmplt_epi32_mask(greatest, _mm512_set1_epi32(0x7f800000));
    const __m512 s = _mm512_mask_div_ps(_mm512_set1_ps(NAN), sound, _mm512_castsi512_ps(greatest), _mm512_set1_ps(127.0f));
    const __mmask16 normal = _mm512_cmp_ps_mask(s, _mm512_set1_ps(FLT_MIN), _CMP_GE_OQ);
    _mm512_store_ps(scale, s);
    _mm512_store_ps(inverse, _mm512_maskz_div_ps(normal, _mm512_set1_ps(1.0f), s));
  }
};

// The sums of the 16 numbers of each quarter of four vectors of 64 bytes; that of quarter h of vector t comes to place 4 h + t.
inline __m512i quarter_sums(const __m512i (&codes)[kGroupsTogether / 2]) {
  __m512i fours[4], pairs[2];
  for (int t = 0; t < 4; ++t) fours[t] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), codes[t]);
  for (int i = 0; i < 2; ++i)
    pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(fours[2 * i], fours[2 * i + 1]), _mm512_unpackhi_epi32(fours[2 * i], fours[2 * i + 1]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[0], pairs[1]), _mm512_unpackhi_epi64(pairs[0], pairs[1]));
}

// Eight groups of one row from input `i` on; those from `end` on are not written.
[[gnu::always_inline]] inline void groups_to_int8(const float* row, int i, int k, int end, const Norm& norm, __m512 factor, Operand& operand, int r) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512 v[kGroupsTogether][2];
  __m512i greatest[kGroupsTogether], codes[kGroupsTogether / 2];
#pragma GCC unroll 8
  for (int g = 0; g < kGroupsTogether; ++g) {
    v[g][0] = normed16(row, i + g * kGroup, k, norm, factor);
    v[g][1] = normed16(row, i + g * kGroup + 16, k, norm, factor);
    // As integers, magnitudes keep their order, and what is not a number comes last.
    greatest[g] = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(v[g][0]), magnitude), _mm512_and_si512(_mm512_castps_si512(v[g][1]), magnitude));
  }
  const GroupScales scales(greatest_of(greatest));
  const int groups = std::min(kGroupsTogether, (end - i) / kGroup);
#pragma GCC unroll 4
  for (int t = 0; t < kGroupsTogether / 2; ++t) {
    __m512i c[4];
    for (int j = 0; j < 4; ++j) {
      const int g = 2 * t + j / 2;
      const __mmask16 kept = scales.sound >> g & 1 ? 0xffff : 0;
      c[j] = _mm512_maskz_cvtps_epi32(kept, _mm512_mul_ps(v[g][j % 2], _mm512_set1_ps(scales.inverse[g])));
    }
    codes[t] = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(_mm512_packs_epi32(c[0], c[1]), _mm512_packs_epi32(c[2], c[3])));
    if (2 * t < groups) _mm512_storeu_si512(codes_at(operand, r, i / kDeep + t), codes[t]);
  }
  alignas(64) int32_t sums[16];
  _mm512_store_si512(sums, quarter_sums(codes));
  for (int g = 0; g < groups; ++g) {
    const int left = sums[g % 2 * 8 + g / 2], right = sums[g % 2 * 8 + 4 + g / 2], group = i / kGroup + g;
    scales_at(operand, group)[r] = scales.scale[g];
    sums_at(operand, group, 0)[r] = left;
    sums_at(operand, group, 1)[r] = right;
    sums_at(operand, group, 2)[r] = left + right;
  }
}

void to_int8(const float* x, int stride, int k, const Norm& norm, Operand& operand, const Part& part) {
  for (int r = part.row0; r < part.row1; ++r) {
    const float* row = x + static_cast<size_t>(r) * stride;
    const __m512 factor = factor_of(row, k, norm);
    for (int i = part.input0; i < part.input1; i += kGroupsTogether * kGroup) groups_to_int8(row, i, k, part.input1, norm, factor, operand, r);
  }
}

inline void store_bf16(uint16_t* out, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}

void to_rows16(const float* x, int stride, int k, const Norm& norm, Operand& operand, const Part& part) {
  for (int r = part.row0; r < part.row1; ++r) {
    const float* row = x + static_cast<size_t>(r) * stride;
    const __m512 factor = factor_of(row, k, norm);
    uint16_t* out = operand.rows16 + static_cast<size_t>(r) * operand.k_pad;
    for (int i = part.input0; i < part.input1; i += 16) store_bf16(out + i, normed16(row, i, k, norm, factor));
  }
}

void to_tiles(const float* x, int stride, int k, const Norm& norm, Operand& operand, const Part& part) {
  const int deep = operand.k_pad / 32;
  for (int r = part.row0; r < (part.row1 + 15) / 16 * 16; ++r) {
    uint16_t* out = operand.tiles + static_cast<size_t>(r / 16) * deep * 512 + r % 16 * 32;
    if (r >= part.row1) {
      for (int t = part.input0 / 32; t < part.input1 / 32; ++t) _mm512_storeu_si512(out + static_cast<size_t>(t) * 512, _mm512_setzero_si512());
      continue;
    }
    const float* row = x + static_cast<size_t>(r) * stride;
    const __m512 factor = factor_of(row, k, norm);
    for (int i = part.input0; i < part.input1; i += 16) store_bf16(out + static_cast<size_t>(i / 32) * 512 + i % 32, normed16(row, i, k, norm, factor));
  }
}

// One row of a finished strip pair: outputs 32 · pair .. + 31 in two registers.
inline void finish_row(const Epilogue& end, int row, int pair, __m512 a, __m512 b) {
  const int first = pair * kStrip;
  const size_t place = end.row_of(row);
  if (end.bias) {
    a = _mm512_add_ps(a, _mm512_loadu_ps(end.bias + first));
    b = _mm512_add_ps(b, _mm512_loadu_ps(end.bias + first + 16));
  }
  if (end.gated) {
    const __m512 product = _mm512_mul_ps(silu16(a), b);
    const int at = first / 2;
    if (end.tiles) store_bf16(end.tiles + (static_cast<size_t>(row / 16) * end.tile_steps + at / 32) * 512 + row % 16 * 32 + at % 32, product);
    else _mm512_mask_storeu_ps(end.out + place * end.out_stride + at, tail_mask(end.n / 2 - at), product);
    return;
  }
  float* out = end.out + place * end.out_stride;
  const __mmask16 low = tail_mask(end.n - first), high = tail_mask(end.n - first - 16);
  if (end.add) {
    const float* add = end.add + place * end.add_stride + first;
    a = _mm512_add_ps(a, _mm512_maskz_loadu_ps(low, add));
    b = _mm512_add_ps(b, _mm512_maskz_loadu_ps(high, add + 16));
  }
  _mm512_mask_storeu_ps(out + first, low, a);
  _mm512_mask_storeu_ps(out + first + 16, high, b);
  if (end.block_max) {
    // A maximum may pass over what is no number, and what is infinitely small: either shows as NaN.
    const __mmask16 wrong = _mm512_mask_fpclass_ps_mask(low, a, 0x99) | _mm512_mask_fpclass_ps_mask(high, b, 0x99);
    const float greatest = std::max(_mm512_mask_reduce_max_ps(low, a), _mm512_mask_reduce_max_ps(high, b));
    end.block_max[place * end.max_stride + pair] = wrong ? NAN : greatest;
  }
}

// Codes of quads r (inputs 4r .. 4r + 3) and r + 8 of a tile: 16 outputs × 4 inputs of unsigned bytes. A split matrix has its low nibbles
// elsewhere; by the high ones alone a code is twice them.
template <int Bits>
inline void load_codes(const uint8_t* tile, [[maybe_unused]] const uint8_t* low_nibbles, int r, __m512i& low, __m512i& high) {
  if constexpr (Bits == kHigh) {
    const __m512i mask = _mm512_set1_epi8(30), v = _mm512_load_si512(tile + 64 * r);
    low = _mm512_and_si512(_mm512_slli_epi16(v, 1), mask);
    high = _mm512_and_si512(_mm512_srli_epi16(v, 3), mask);
    return;
  }
  if constexpr (Bits == kSplit) {
    // Bit by bit: the low nibble of the first, the high nibble of the second.
    const __m512i nibble = _mm512_set1_epi8(15), v = _mm512_load_si512(tile + 64 * r), u = _mm512_load_si512(low_nibbles + 64 * r);
    low = _mm512_ternarylogic_epi32(nibble, u, _mm512_slli_epi16(v, 4), 0xca);
    high = _mm512_ternarylogic_epi32(nibble, _mm512_srli_epi16(u, 4), v, 0xca);
    return;
  }
  if constexpr (Bits == 8) {
    low = _mm512_load_si512(tile + 64 * r);
    high = _mm512_load_si512(tile + 64 * (r + 8));
    return;
  }
  const __m512i nibble = _mm512_set1_epi8(15), v = _mm512_load_si512(tile + 64 * r);
  low = _mm512_and_si512(v, nibble);
  high = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
  if constexpr (Bits == 5) {
    uint64_t l, h;
    std::memcpy(&l, tile + 512 + 8 * r, 8);
    std::memcpy(&h, tile + 512 + 8 * (r + 8), 8);
    const __m512i sixteen = _mm512_set1_epi8(16);
    low = _mm512_mask_add_epi8(low, _cvtu64_mask64(l), low, sixteen);
    high = _mm512_mask_add_epi8(high, _cvtu64_mask64(h), high, sixteen);
  }
  if constexpr (Bits == 6) {
    const __m512i two = _mm512_set1_epi8(0x30), p = _mm512_load_si512(tile + 512 + 64 * (r % 4));
    const __m512i l = r < 4 ? _mm512_slli_epi16(p, 4) : _mm512_slli_epi16(p, 2), h = r < 4 ? p : _mm512_srli_epi16(p, 2);
    low = _mm512_or_si512(low, _mm512_and_si512(l, two));
    high = _mm512_or_si512(high, _mm512_and_si512(h, two));
  }
}

inline __m512 load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

// A finished sum in the unit of its codes.
template <int Bits>
inline __m512 stepped(__m512 total) {
  return Bits == kHigh ? _mm512_mul_ps(total, _mm512_set1_ps(kHighStep)) : total;
}

// A strip pair of M int8 rows. The order of every float sum is: tiles in input order, sums of a tile in input order.
template <int Bits, int Group, bool HasMin, int M>
void few_rows(const kh_weight& w, const Operand& a, const Starts& starts, int row0, int pair, const Epilogue& end) {
  using S = Sums<Group>;
  const int deep = w.k_pad / kDeep, bytes = w.tile_bytes;
  const uint8_t* tile = w.data + static_cast<size_t>(pair) * deep * 2 * bytes;
  const uint8_t* low_nibbles = Bits == kSplit ? low_of(w, tile) : nullptr;
  __m512 total[M][2];
  for (int m = 0; m < M; ++m) total[m][0] = total[m][1] = _mm512_setzero_ps();
  for (int d = 0; d < deep; ++d) {
    const int8_t* q = codes_at(a, row0, d);
#pragma GCC unroll 2
    for (int strip = 0; strip < 2; ++strip, tile += bytes) {
      // Far enough ahead that memory has answered when the tile is reached.
      for (int line = 0; line < tile_bytes_of(Bits, Group, HasMin); line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(tile + 12 * bytes + line), _MM_HINT_T0);
      for (int line = 0; Bits == kSplit && line < kLowBytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(low_nibbles + 12 * kLowBytes + line), _MM_HINT_T0);
      __m512i sum[M][S::kCount];
      for (int m = 0; m < M; ++m)
        for (int s = 0; s < S::kCount; ++s)
          sum[m][s] = HasMin ? _mm512_setzero_si512() : _mm512_set1_epi32(starts.begin[(d * S::kCount + s) * a.rows + row0 + m]);
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        __m512i low, high;
        load_codes<Bits>(tile, low_nibbles, r, low, high);
        for (int m = 0; m < M; ++m) {
          int32_t x, y;
          std::memcpy(&x, q + m * kDeep + 4 * r, 4);
          std::memcpy(&y, q + m * kDeep + 4 * r + 32, 4);
          __m512i& left = sum[m][4 * r / S::kInputs];
          __m512i& right = sum[m][(32 + 4 * r) / S::kInputs];
          left = _mm512_dpbusd_epi32(left, low, _mm512_set1_epi32(x));
          right = _mm512_dpbusd_epi32(right, high, _mm512_set1_epi32(y));
        }
      }
      const uint16_t* scales = reinterpret_cast<const uint16_t*>(tile + code_bytes(Bits));
      for (int s = 0; s < S::kCount; ++s) {
        const int place = s * S::kInputs / Group * 16;
        const __m512 scale = load_half(scales + place);
        const __m512 minimum = HasMin ? load_half(scales + kDeep / Group * 16 + place) : _mm512_setzero_ps();
        const float* turn = scales_at(a, d * 2 + s * S::kInputs / kGroup) + row0;
        const float* mass = starts.mass + (d * S::kCount + s) * a.rows + row0;
        for (int m = 0; m < M; ++m) {
          total[m][strip] = _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(turn[m])), _mm512_cvtepi32_ps(sum[m][s]), total[m][strip]);
          if (HasMin) total[m][strip] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(mass[m]), total[m][strip]);
        }
      }
      if (Bits == kSplit) low_nibbles += kLowBytes;
    }
  }
  for (int m = 0; m < M; ++m) finish_row(end, row0 + m, pair, stepped<Bits>(total[m][0]), stepped<Bits>(total[m][1]));
}

// A strip pair of M bfloat16 rows with 16-bit weights.
template <int M>
void few_rows16(const kh_weight& w, const Operand& a, const Starts&, int row0, int pair, const Epilogue& end) {
  const int deep = w.k_pad / kDeep;
  const uint8_t* tile = w.data + static_cast<size_t>(pair) * deep * 2 * w.tile_bytes;
  __m512 total[M][2];
  for (int m = 0; m < M; ++m) total[m][0] = total[m][1] = _mm512_setzero_ps();
  for (int d = 0; d < deep; ++d)
#pragma GCC unroll 2
    for (int strip = 0; strip < 2; ++strip, tile += w.tile_bytes)
      for (int p = 0; p < 32; ++p) {
        _mm_prefetch(reinterpret_cast<const char*>(tile + 64 * p + 8192), _MM_HINT_T0);
        const __m512bh v = reinterpret_cast<__m512bh>(_mm512_load_si512(tile + 64 * p));
        for (int m = 0; m < M; ++m) {
          int32_t x;
          std::memcpy(&x, a.rows16 + static_cast<size_t>(row0 + m) * a.k_pad + d * kDeep + 2 * p, 4);
          total[m][strip] = _mm512_dpbf16_ps(total[m][strip], v, reinterpret_cast<__m512bh>(_mm512_set1_epi32(x)));
        }
      }
  for (int m = 0; m < M; ++m) finish_row(end, row0 + m, pair, total[m][0], total[m][1]);
}

using FewRows = void (*)(const kh_weight&, const Operand&, const Starts&, int, int, const Epilogue&);

template <int M>
struct FewFor {
  template <int Bits, int Group, bool HasMin>
  struct Made {
    static constexpr FewRows run = few_rows<Bits, Group, HasMin, M>;
  };
};

template <int M>
FewRows few_for(const kh_weight& w) {
  if (w.bits == 16) return few_rows16<M>;
  return form_of<FewRows, FewFor<M>::template Made>(w);
}

// The same matrix as its high nibbles alone have it.
inline kh_weight high_of(const kh_weight& w) {
  kh_weight high = w;
  high.zero = kHighZero;
  return high;
}

// Rows in runs of at most four: more accumulators than registers would spill. The runs of one strip pair follow each other, so that only
// the first of them reads the weights from memory.
void few_in_runs(const kh_weight& w, const Operand& a, int pair0, int pair1, const Epilogue& end, Scratch& scratch, const FewRows* runs) {
  const Starts starts = w.bits == 16 ? Starts{} : starts_of(w, a, scratch);
  for (int pair = pair0; pair < pair1; ++pair)
    for (int row = 0; row < a.rows; row += 4) runs[std::min(4, a.rows - row)](w, a, starts, row, pair, end);
}

void few(const kh_weight& w, const Operand& a, int pair0, int pair1, const Epilogue& end, Scratch& scratch) {
  const FewRows runs[] = {nullptr, few_for<1>(w), few_for<2>(w), few_for<3>(w), few_for<4>(w)};
  few_in_runs(w, a, pair0, pair1, end, scratch, runs);
}

void few_high(const kh_weight& w, const Operand& a, int pair0, int pair1, const Epilogue& end, Scratch& scratch) {
  static constexpr FewRows runs[] = {nullptr, few_rows<kHigh, 32, false, 1>, few_rows<kHigh, 32, false, 2>, few_rows<kHigh, 32, false, 3>,
                                     few_rows<kHigh, 32, false, 4>};
  few_in_runs(high_of(w), a, pair0, pair1, end, scratch, runs);
}

void rotate(float* x, int heads, int size, const float* cosine, const float* sine, int half) {
  for (int h = 0; h < heads; ++h, x += size)
    for (int i = 0; i < half; i += 16) {
      const __mmask16 mask = tail_mask(half - i);
      const __m512 c = _mm512_maskz_loadu_ps(mask, cosine + i), s = _mm512_maskz_loadu_ps(mask, sine + i);
      const __m512 left = _mm512_maskz_loadu_ps(mask, x + i), right = _mm512_maskz_loadu_ps(mask, x + half + i);
      _mm512_mask_storeu_ps(x + i, mask, _mm512_fmsub_ps(left, c, _mm512_mul_ps(right, s)));
      _mm512_mask_storeu_ps(x + half + i, mask, _mm512_fmadd_ps(right, c, _mm512_mul_ps(left, s)));
    }
}

// The 64 codes of output n (0..15) of a tile, in input order.
inline __m512i codes_of_row(const uint8_t* tile, int bits, int n) {
  const __m512i quads = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240);
  const uint8_t* mine = tile + 4 * n;
  if (bits == 8) return _mm512_i32gather_epi32(quads, mine, 4);
  const __m256i both = _mm256_i32gather_epi32(reinterpret_cast<const int*>(mine), _mm512_castsi512_si256(quads), 4), nibble = _mm256_set1_epi8(15);
  __m512i codes = _mm512_castsi256_si512(_mm256_and_si256(both, nibble));
  codes = _mm512_inserti64x4(codes, _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble), 1);
  if (bits == 5) {
    uint64_t fifth = 0;
    for (int q = 0; q < 16; ++q) fifth |= static_cast<uint64_t>(tile[512 + 8 * q + n / 2] >> (n % 2 * 4) & 15) << (4 * q);
    codes = _mm512_mask_add_epi8(codes, _cvtu64_mask64(fifth), codes, _mm512_set1_epi8(16));
  }
  if (bits == 6) {
    const __m128i two = _mm_i32gather_epi32(reinterpret_cast<const int*>(mine + 512), _mm512_castsi512_si128(quads), 4), mask = _mm_set1_epi8(3);
    __m512i high = _mm512_castsi128_si512(_mm_and_si128(two, mask));
    high = _mm512_inserti32x4(high, _mm_and_si128(_mm_srli_epi16(two, 2), mask), 1);
    high = _mm512_inserti32x4(high, _mm_and_si128(_mm_srli_epi16(two, 4), mask), 2);
    high = _mm512_inserti32x4(high, _mm_and_si128(_mm_srli_epi16(two, 6), mask), 3);
    codes = _mm512_or_si512(codes, _mm512_slli_epi16(high, 4));
  }
  return codes;
}

inline __m512i split_codes_of_row(const uint8_t* tile, const uint8_t* low_nibbles, int n) {
  return _mm512_or_si512(_mm512_slli_epi16(codes_of_row(tile, 4, n), 4), codes_of_row(low_nibbles, 4, n));
}

// Sixteen bfloat16 inputs of one output lie as eight dwords, a line apart.
inline void table_row16(const kh_weight& w, int row, float* out) {
  const __m256i lines = _mm256_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112);
  for (int k = 0; k < w.k; k += 16) {
    const uint8_t* from = tile_of(w, row, k) + k % 64 / 16 * 512 + row % 16 * 4;
    const __m256i pairs = _mm256_i32gather_epi32(reinterpret_cast<const int*>(from), lines, 4);
    _mm512_mask_storeu_ps(out + k, tail_mask(w.k - k), _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(pairs), 16)));
  }
}

void table_row(const kh_weight& w, int row, float* out) {
  if (w.bits == 16) return table_row16(w, row, out);
  const __m512i zero = _mm512_set1_epi32(w.zero);
  for (int k = 0; k < w.k; k += kDeep) {
    uint8_t* tile = const_cast<uint8_t*>(tile_of(w, row, k));
    alignas(64) uint8_t codes[kDeep];
    _mm512_store_si512(codes, w.split ? split_codes_of_row(tile, low_of(w, tile), row % 16) : codes_of_row(tile, w.bits, row % 16));
    const uint16_t *scales = scales_of(tile, w), *minima = minima_of(tile, w);
    for (int i = 0; i < kDeep && k + i < w.k; i += 16) {
      const int place = i / w.group * 16 + row % 16;
      const __m512 scale = _mm512_set1_ps(_cvtsh_ss(scales[place])), minimum = _mm512_set1_ps(w.has_min ? _cvtsh_ss(minima[place]) : 0.0f);
      const __m512i code = _mm512_sub_epi32(_mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(codes + i))), zero);
      // The product is exact, so that the sum is rounded once whether it is fused or not.
      _mm512_mask_storeu_ps(out + k + i, tail_mask(w.k - k - i), _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(code), minimum));
    }
  }
}

void rms_norm(const float* x, int n, const Norm& norm, float* out) {
  const __m512 factor = factor_of(x, n, norm);
  for (int i = 0; i < n; i += 16) _mm512_mask_storeu_ps(out + i, tail_mask(n - i), normed16(x, i, n, norm, factor));
}

void silu_mul(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = tail_mask(n - i);
    const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i), u = _mm512_maskz_loadu_ps(mask, up + i);
    _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(silu16(g), u));
  }
}

}  // namespace
}  // namespace kh
