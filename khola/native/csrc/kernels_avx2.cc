// The kernels for processors with AVX2, FMA and F16C: laptops and desktops from 2013 on.

#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "lanes_avx2.h"

#include "attend8.h"
#include "rates.h"

namespace kh {

namespace {

constexpr Kernels kAvx2 = {"avx2", to_int8, to_rows16,      to_tiles,    few,       many,     many_scratch, rotate,
                          store,  attend,  attend_scratch, part_floats, table_row, rms_norm, silu_mul, 1, nullptr, false, {{"avx2_float32", avx2_float32}}};

}  // namespace

const Kernels* kernels_avx2() { return &kAvx2; }

}  // namespace kh

#else

namespace kh {
const Kernels* kernels_avx2() { return nullptr; }
}  // namespace kh

#endif
