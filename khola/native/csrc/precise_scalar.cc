// Precise kernels for whatever the compiler takes for granted.

#include <string_view>

#include "precise_attend.h"

namespace kh {

const Precise* precise_scalar() { return &kPrecise; }

Kernels precise_kernels(const Kernels& usual) {
  const std::string_view name(usual.name);
  const Precise* found = nullptr;
  if (name == "amx" || name == "avx512") found = precise_avx512();
  if (name == "avxvnni" || name == "avx2") found = precise_avx2();
  if (!found) found = precise_scalar();
  Kernels kernels = usual;
  kernels.precise = true;
  kernels.to_int8 = kernels.to_rows16 = kernels.to_tiles = found->to_plain;
  kernels.few = kernels.many = found->many;
  kernels.many_scratch = found->many_scratch;
  kernels.store = found->store;
  kernels.attend = found->attend;
  kernels.attend_scratch = found->attend_scratch;
  kernels.part_floats = found->part_floats;
  kernels.few_high = nullptr;
  kernels.gates_into_tiles = false;
  return kernels;
}

}  // namespace kh
