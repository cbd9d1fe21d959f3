// Training kernels for processors with AVX-512 and BF16.

#include "train.h"

#if defined(__AVX512BF16__)

#include "train_small.h"

namespace kh {
const TrainKernels* train_avx512() { return &kTraining; }
}  // namespace kh

#else

namespace kh {
const TrainKernels* train_avx512() { return nullptr; }
}  // namespace kh

#endif
