// The kernels for every 64-bit ARM processor.

#include "kernels.h"

#if defined(__aarch64__)

#include "lanes_neon.h"

#include "attend8.h"
#include "rates.h"

namespace kh {

namespace {

constexpr Kernels kNeon = {"neon", to_int8, to_rows16,      to_tiles,    few,       many,     many_scratch, rotate,
                          store,  attend,  attend_scratch, part_floats, table_row, rms_norm, silu_mul, 1, nullptr, false, {{"neon_float32", neon_float32}}};

}  // namespace

const Kernels* kernels_neon() { return &kNeon; }

}  // namespace kh

#else

namespace kh {
const Kernels* kernels_neon() { return nullptr; }
}  // namespace kh

#endif
