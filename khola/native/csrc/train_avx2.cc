// Training kernels for processors with AVX2.

#include "train.h"

#if defined(__AVX2__)

#include "train_small.h"

namespace kh {
const TrainKernels* train_avx2() { return &kTraining; }
}  // namespace kh

#else

namespace kh {
const TrainKernels* train_avx2() { return nullptr; }
}  // namespace kh

#endif
