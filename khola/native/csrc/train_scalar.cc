// Training kernels for whatever the compiler takes for granted, and how much memory they all need.

#include "train_small.h"

namespace kh {

const TrainKernels* train_scalar() { return &kTraining; }

size_t attend_bytes(const kh_attention& t) { return (static_cast<size_t>(panels_of(t.key_size)) * 2 + panels_of(t.value_size) * 4 + kTogether * 6) * kPair + 256; }

size_t attend_back_bytes(const kh_attention& t, int most_panels) {
  AttentionPlan plan;
  plan.key_panels = panels_of(t.key_size);
  plan.value_panels = panels_of(t.value_size);
  size_t bytes;
  laid_out(plan, most_panels, reinterpret_cast<uint8_t*>(uintptr_t{64}), &bytes);
  return bytes;
}

}  // namespace kh
