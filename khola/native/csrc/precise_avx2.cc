// Precise kernels for processors with AVX2 and FMA.

#include "precise.h"

#if defined(__AVX2__) && defined(__FMA__)

#include "precise_attend.h"

namespace kh {
const Precise* precise_avx2() { return &kPrecise; }
}  // namespace kh

#else

namespace kh {
const Precise* precise_avx2() { return nullptr; }
}  // namespace kh

#endif
