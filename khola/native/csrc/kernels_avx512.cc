// The kernels for processors with AVX-512 (F, BW, VL, DQ), VNNI and BF16: what vector512.h, product512.h and attend512.h hold, with the
// vector unit adding up the products of tiles.

#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__)

#include "attend512.h"
#include "rates.h"

namespace kh {

namespace {

struct VectorUnit {
  static void begin() {}
  static void end() {}

  // Eight rows at a time: sixteen sums hide the latency of an addition, and leave registers for both lines of the weights.
  template <int Tiles, typename B>
  static void block(const uint16_t* a, size_t a_next, B b, int steps, float* c, size_t c_next, bool first, int rows) {
    for (int row = 0; row < rows; row += 8) {
      const uint16_t* from = a + row / 16 * a_next + row % 16 * 32;
      float* to = c + row / 16 * c_next + row % 16 * 16;
      __m512 sum[8][2];
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r)
        for (int side = 0; side < 2; ++side) sum[r][side] = first ? _mm512_setzero_ps() : _mm512_load_ps(to + side * 256 + r * 16);
      for (int s = 0; s < steps; ++s) {
        const uint16_t *tile = b(s), *line = from + s * 512;
        for (int p = 0; p < 16; ++p) {
          const __m512bh left = reinterpret_cast<__m512bh>(_mm512_load_si512(tile + p * 32));
          const __m512bh right = reinterpret_cast<__m512bh>(_mm512_load_si512(tile + 512 + p * 32));
#pragma GCC unroll 8
          for (int r = 0; r < 8; ++r) {
            int32_t two;
            std::memcpy(&two, line + r * 32 + p * 2, 4);
            const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], left, x);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], right, x);
          }
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r)
        for (int side = 0; side < 2; ++side) _mm512_store_ps(to + side * 256 + r * 16, sum[r][side]);
    }
  }
};

constexpr Kernels kAvx512 = {"avx512", to_int8, to_rows16,          to_tiles,       few,         many<VectorUnit>, many_scratch, rotate,
                             store,    attend<VectorUnit>, attend_scratch, part_floats, table_row,        rms_norm,     silu_mul, 1, few_high, true,
                             {{"avx512_bf16", avx512_bf16}, {"avx512_int8", avx512_int8}}};

}  // namespace

const Kernels* kernels_avx512() { return &kAvx512; }

}  // namespace kh

#else

namespace kh {
const Kernels* kernels_avx512() { return nullptr; }
}  // namespace kh

#endif
