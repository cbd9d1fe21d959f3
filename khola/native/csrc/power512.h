// Powers of two in vectors of sixteen numbers.
#pragma once

#include <immintrin.h>

namespace kh {
namespace {

// 2 to the power x to about 3 units in the last place, and exactly 1 for 0: scalef takes the floor of x, a polynomial the rest (minimax on
// [0, 1) with a constant of 1, relative error 8.2e-08). Cheaper than exp16; attention, which weighs by it, scales its scores by log2(e).
inline __m512 power16(__m512 x) {
  const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(1.8671304e-03f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.0170296e-03f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5799914e-02f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4016445e-01f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9315131e-01f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);
}

}  // namespace
}  // namespace kh
