// Scans and convolutions for processors with AVX2.

#include "scan.h"

#if defined(__AVX2__)

#include "scan_loops.h"

namespace kh {
const Scans* scans_avx2() { return &kScans; }
}  // namespace kh

#else

namespace kh {
const Scans* scans_avx2() { return nullptr; }
}  // namespace kh

#endif
