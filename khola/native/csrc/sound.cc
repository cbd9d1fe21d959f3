#include "sound.h"

#include "states.h"

namespace kh {

bool sound(const kh_model& model, const kh_cache* cache, const kh_batch& b) {
  if (b.num_rows < 1 || b.num_rows > model.max_rows || b.num_wanted < 0 || b.num_wanted > model.max_wanted || b.num_sequences < 1) return false;
  if (cache && !model.layers.empty() && cache->plain != model.kernels.precise) return false;
  if (b.starts[0] != 0 || b.starts[b.num_sequences] != b.num_rows) return false;
  for (const kh_op& op : model.ops) {
    if (op.op == KH_KEPT && !b.kept) return false;
    if (op.op == KH_EMBED)
      for (int r = 0; r < b.num_rows; ++r)
        if (b.ids[r] < 0 || b.ids[r] >= model.weights[op.w0].n) return false;
  }
  for (int r = 0; r < b.num_wanted; ++r)
    if (b.wanted[r] < 0 || b.wanted[r] >= b.num_rows) return false;
  for (int s = 0; s < b.num_sequences; ++s) {
    const int first = b.starts[s], last = b.starts[s + 1], length = b.lengths[s];
    if (last <= first || last > b.num_rows || length < last - first || length > model.max_context) return false;
    for (int r = first; r < last; ++r)
      if (b.positions[r] != length - (last - r)) return false;
    const int pages = (length + KH_PAGE - 1) / KH_PAGE, written = (length - (last - first)) / KH_PAGE;
    if (!model.layers.empty() && (!cache || pages > b.page_stride)) return false;
    for (int p = 0; p < pages && cache; ++p) {
      const int page = b.pages[static_cast<size_t>(s) * b.page_stride + p];
      if (page >= cache->num_pages || (page < 0 && (p >= written || !model.windowed))) return false;
    }
  }
  return sound_states(model, cache, b);
}

}  // namespace kh
