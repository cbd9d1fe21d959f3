// How fast the units of a processor multiply when they wait for nothing: operands stay in registers, and enough sums take turns that none
// waits for the one before. What a product of matrices reaches is a share of that. Each file of kernels includes this with its own options.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Without external linkage: a copy that was compiled with one instruction set's options must not serve the others.
namespace kh {
namespace {

// A result that nobody reads would be left out, and all that led to it.
inline void keep(float x) {
  volatile float kept = x;
  (void)kept;
}

#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__)

// Eight sums of sixteen numbers; each adds two products, or four of bytes.
inline int64_t avx512_bf16(int64_t rounds) {
  __m512 sum[8] = {};
  const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80)), b = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3a003a00));
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 8
    for (__m512& s : sum) {
      s = _mm512_dpbf16_ps(s, a, b);
      asm volatile("" : "+v"(s));
    }
  for (int i = 1; i < 8; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  keep(_mm512_reduce_add_ps(sum[0]));
  return rounds * 8 * 16 * 2 * 2;
}

inline int64_t avx512_int8(int64_t rounds) {
  __m512i sum[8] = {};
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 8
    for (__m512i& s : sum) {
      s = _mm512_dpbusd_epi32(s, a, b);
      asm volatile("" : "+v"(s));
    }
  for (int i = 1; i < 8; ++i) sum[0] = _mm512_add_epi32(sum[0], sum[i]);
  keep(static_cast<float>(_mm512_reduce_add_epi32(sum[0])));
  return rounds * 8 * 16 * 4 * 2;
}

#endif

#if defined(__AVX2__) && defined(__FMA__)

inline int64_t avx2_float32(int64_t rounds) {
  __m256 sum[12] = {};
  const __m256 a = _mm256_set1_ps(1.0f), b = _mm256_set1_ps(1e-6f);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (__m256& s : sum) {
      s = _mm256_fmadd_ps(a, b, s);
      asm volatile("" : "+x"(s));
    }
  for (int i = 1; i < 12; ++i) sum[0] = _mm256_add_ps(sum[0], sum[i]);
  keep(_mm256_cvtss_f32(sum[0]));
  return rounds * 12 * 8 * 2;
}

#endif

#if defined(__AVX2__) && defined(__AVXVNNI__)

inline int64_t avx_vnni_int8(int64_t rounds) {
  __m256i sum[12] = {};
  const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (__m256i& s : sum) {
      s = _mm256_dpbusd_avx_epi32(s, a, b);
      asm volatile("" : "+x"(s));
    }
  for (int i = 1; i < 12; ++i) sum[0] = _mm256_add_epi32(sum[0], sum[i]);
  keep(static_cast<float>(_mm256_cvtsi256_si32(sum[0])));
  return rounds * 12 * 8 * 4 * 2;
}

#endif

#if defined(__aarch64__)

inline int64_t neon_float32(int64_t rounds) {
  float32x4_t sum[12] = {};
  const float32x4_t a = vdupq_n_f32(1.0f), b = vdupq_n_f32(1e-6f);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (float32x4_t& s : sum) {
      s = vfmaq_f32(s, a, b);
      asm volatile("" : "+w"(s));
    }
  for (int i = 1; i < 12; ++i) sum[0] = vaddq_f32(sum[0], sum[i]);
  keep(vaddvq_f32(sum[0]));
  return rounds * 12 * 4 * 2;
}

#if defined(__ARM_FEATURE_DOTPROD)

inline int64_t dotprod_int8(int64_t rounds) {
  int32x4_t sum[12] = {};
  const int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(-2);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (int32x4_t& s : sum) {
      s = vdotq_s32(s, a, b);
      asm volatile("" : "+w"(s));
    }
  for (int i = 1; i < 12; ++i) sum[0] = vaddq_s32(sum[0], sum[i]);
  keep(static_cast<float>(vaddvq_s32(sum[0])));
  return rounds * 12 * 4 * 4 * 2;
}

#endif

#endif

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__)

// Two by two tiles, as the kernels of many rows take them; all eight of them hold 16 rows of 64 bytes.
template <bool Bytes>
inline int64_t amx(int64_t rounds) {
  alignas(64) uint8_t config[64] = {1};
  for (int tile = 0; tile < 8; ++tile) config[16 + 2 * tile] = 64, config[48 + tile] = 16;
  asm volatile("" ::"r"(&config) : "memory");  // GCC believes that only some of it is read
  _tile_loadconfig(config);
  alignas(64) uint16_t operand[16 * 32];
  for (int i = 0; i < 16 * 32; ++i) operand[i] = static_cast<uint16_t>(0x3c00 + i % 61);  // numbers near 0.01: sums stay small
  _tile_loadd(4, operand, 64);
  _tile_loadd(5, operand, 64);
  _tile_loadd(6, operand, 64);
  _tile_loadd(7, operand, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < rounds; ++i) {
    if constexpr (Bytes) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  alignas(64) float out[16 * 16];
  _tile_stored(3, out, 64);
  _tile_release();
  keep(out[0]);
  return rounds * 4 * 16 * 16 * (Bytes ? 64 : 32) * 2;
}

#endif

}  // namespace
}  // namespace kh
