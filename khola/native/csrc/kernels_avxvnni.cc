// The kernels for processors with AVX2 and the dot products of AVX-VNNI, but without AVX-512: the same source as kernels_avx2.cc, with
// other options.

#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__AVXVNNI__)

#include "lanes_avx2.h"

#include "attend8.h"
#include "rates.h"

namespace kh {

namespace {

constexpr Kernels kAvxVnni = {"avxvnni", to_int8, to_rows16,      to_tiles,    few,       many,     many_scratch, rotate,
                          store,  attend,  attend_scratch, part_floats, table_row, rms_norm, silu_mul,
                          1,      nullptr, false,          {{"avx_vnni_int8", avx_vnni_int8}}};

}  // namespace

const Kernels* kernels_avxvnni() { return &kAvxVnni; }

}  // namespace kh

#else

namespace kh {
const Kernels* kernels_avxvnni() { return nullptr; }
}  // namespace kh

#endif
