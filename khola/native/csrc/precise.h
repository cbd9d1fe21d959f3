// Kernels that round nothing but sums: inputs of products, keys and values stay in float32, and so does what a packed weight stands for.
// Written once, in loops over 32 neighbouring outputs, and compiled for each instruction set by a file of its own, which joins products and
// sums where the set can. Outputs never meet each other and sums go over inputs in order, so the width of a vector changes no bit.
#pragma once

#include "kernels.h"

namespace kh {

// What takes the place of the kernels that round.
struct Precise {
  ToForm to_plain;  // Operand::plain
  decltype(Kernels::many) many;
  decltype(Kernels::many_scratch) many_scratch;
  decltype(Kernels::store) store;
  decltype(Kernels::attend) attend;
  decltype(Kernels::attend_scratch) attend_scratch;
  decltype(Kernels::part_floats) part_floats;
};

// nullptr where this build lacks it; `scalar` always exists.
const Precise* precise_scalar();
const Precise* precise_avx2();
const Precise* precise_avx512();

// The kernels of the same instruction set, those that round replaced. All rows have one form, and `many` is the only product.
Kernels precise_kernels(const Kernels& usual);

}  // namespace kh
