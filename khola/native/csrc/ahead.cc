#include "ahead.h"

#if !defined(_WIN32)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace kh {

void read_ahead(const uint8_t* data, size_t bytes) {
#if !defined(_WIN32)
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(data) / page * page;
  // A system that refuses reads the pages when they are touched, which is only slower.
  (void)madvise(reinterpret_cast<void*>(first), reinterpret_cast<uintptr_t>(data) + bytes - first, MADV_WILLNEED);
#else
  (void)data, (void)bytes;
#endif
}

void read_next(const kh_model& model, const kh_op& op) {
  if (op.op != KH_EMBED && op.op != KH_LINEAR && op.op != KH_EXPERTS) return;
  for (const kh_op* next = &op + 1; next < model.ops.data() + model.ops.size(); ++next)
    if (next->op == KH_LINEAR) return read_ahead(model.weights[next->w0].data, kh_packed_bytes(&model.weights[next->w0]));
}

}  // namespace kh
