// The kernels for 64-bit ARM processors with the dot products of ARMv8.2: phones and computers from 2018 on.

#include "kernels.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

#define KH_DOTPROD 1
#include "lanes_neon.h"

#include "attend8.h"
#include "rates.h"

namespace kh {

namespace {

constexpr Kernels kDotprod = {"dotprod", to_int8, to_rows16,      to_tiles,    few,       many,     many_scratch, rotate,
                          store,  attend,  attend_scratch, part_floats, table_row, rms_norm, silu_mul, 1, nullptr, false, {{"dotprod_int8", dotprod_int8}}};

}  // namespace

const Kernels* kernels_dotprod() { return &kDotprod; }

}  // namespace kh

#else

namespace kh {
const Kernels* kernels_dotprod() { return nullptr; }
}  // namespace kh

#endif
