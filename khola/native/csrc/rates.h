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

#if defined(__x86_64__) || defined(_M_X64)
#define KH_IN_REGISTER "+v"
#else
#define KH_IN_REGISTER "+w"
#endif

// So many sums take turns; each takes in as many operations at a time as `multiply` says.
template <typename Sum, int kSums, typename Multiply>
inline int64_t in_turns(int64_t rounds, int operations, Multiply multiply) {
  Sum sums[kSums] = {};
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (Sum& sum : sums) {
      sum = multiply(sum);
      asm volatile("" : KH_IN_REGISTER(sum));  // neither left out, because nobody reads it, nor made once for all rounds
    }
  return rounds * kSums * operations;
}

#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__)

inline int64_t avx512_bf16(int64_t rounds) {
  const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80)), b = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3a003a00));
  return in_turns<__m512, 8>(rounds, 16 * 2 * 2, [a, b](__m512 sum) { return _mm512_dpbf16_ps(sum, a, b); });
}

inline int64_t avx512_int8(int64_t rounds) {
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
  return in_turns<__m512i, 8>(rounds, 16 * 4 * 2, [a, b](__m512i sum) { return _mm512_dpbusd_epi32(sum, a, b); });
}

#endif

#if defined(__AVX2__) && defined(__FMA__)

inline int64_t avx2_float32(int64_t rounds) {
  const __m256 a = _mm256_set1_ps(1.0f), b = _mm256_set1_ps(1e-6f);
  return in_turns<__m256, 12>(rounds, 8 * 2, [a, b](__m256 sum) { return _mm256_fmadd_ps(a, b, sum); });
}

#endif

#if defined(__AVX2__) && defined(__AVXVNNI__)

inline int64_t avx_vnni_int8(int64_t rounds) {
  const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2);
  return in_turns<__m256i, 12>(rounds, 8 * 4 * 2, [a, b](__m256i sum) { return _mm256_dpbusd_avx_epi32(sum, a, b); });
}

#endif

#if defined(__aarch64__)

inline int64_t neon_float32(int64_t rounds) {
  const float32x4_t a = vdupq_n_f32(1.0f), b = vdupq_n_f32(1e-6f);
  return in_turns<float32x4_t, 12>(rounds, 4 * 2, [a, b](float32x4_t sum) { return vfmaq_f32(sum, a, b); });
}

#if defined(__ARM_FEATURE_DOTPROD)

inline int64_t dotprod_int8(int64_t rounds) {
  const int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(-2);
  return in_turns<int32x4_t, 12>(rounds, 4 * 4 * 2, [a, b](int32x4_t sum) { return vdotq_s32(sum, a, b); });
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
  asm volatile("" ::"r"(out) : "memory");
  return rounds * 4 * 16 * 16 * (Bytes ? 64 : 32) * 2;
}

#endif

}  // namespace
}  // namespace kh
