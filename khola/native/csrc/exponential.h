// e to a power in the vectors of the compiler, for files that are compiled once for each instruction set.
#pragma once

#include <cstdint>

namespace kh {
namespace {

template <typename Lane, typename Ints>
inline void choose(const Ints& which, const Lane& a, const Lane& b, Lane& out) {
  out = reinterpret_cast<Lane>((which & reinterpret_cast<Ints>(a)) | (~which & reinterpret_cast<Ints>(b)));
}

// x ← e to the power x to about 2 units in the last place, for x brought between -87 and 88; NaN stays NaN. n is the nearest whole number
// to x / ln 2: added to 3 · 2^22, it stands in the lowest bits of the sum.
template <typename Lane, typename Ints, typename Words>
[[gnu::always_inline]] inline void exponentiate(Lane& x) {
  constexpr float kMiddle = 12582912.0f;
  choose<Lane, Ints>(x < -87.0f, Lane{} - 87.0f, x, x);
  choose<Lane, Ints>(x > 88.0f, Lane{} + 88.0f, x, x);
  const Lane shifted = x * 1.44269504f + kMiddle, n = shifted - kMiddle;
  const Lane r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Lane p = r * 1.9875691e-4f + 1.3981999e-3f;
  p = p * r + 8.3334519e-3f;
  p = p * r + 4.1665796e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 5.0000001e-1f;
  p = p * (r * r) + r + 1.0f;
  x = p * reinterpret_cast<Lane>((reinterpret_cast<Words>(shifted) + 127) << 23);
}

}  // namespace
}  // namespace kh
