// Scans and convolutions for whatever the compiler takes for granted.

#include <string_view>

#include "scan_loops.h"

namespace kh {
const Scans* scans_scalar() { return &kScans; }

const Scans& scans_for(const char* isa) {
  const std::string_view name(isa);
  const Scans* found = nullptr;
  if (name == "amx" || name == "avx512") found = scans_avx512();
  if (name == "avxvnni" || name == "avx2") found = scans_avx2();
  return found ? *found : *scans_scalar();
}
}  // namespace kh
