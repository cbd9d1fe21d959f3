// Precise kernels for processors with AVX-512.

#include "precise.h"

#if defined(__AVX512F__)

#include "precise_attend.h"

namespace kh {
const Precise* precise_avx512() { return &kPrecise; }
}  // namespace kh

#else

namespace kh {
const Precise* precise_avx512() { return nullptr; }
}  // namespace kh

#endif
