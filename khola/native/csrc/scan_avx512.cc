// Scans and convolutions for processors with AVX-512.

#include "scan.h"

#if defined(__AVX512F__)

#include "scan_loops.h"

namespace kh {
const Scans* scans_avx512() { return &kScans; }
}  // namespace kh

#else

namespace kh {
const Scans* scans_avx512() { return nullptr; }
}  // namespace kh

#endif
