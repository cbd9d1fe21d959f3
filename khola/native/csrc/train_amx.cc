// Training kernels for processors with a matrix unit.

#include "train.h"

// Clang spelt its macros without the second underscore before version 15.
#if (defined(__AMX_TILE__) || defined(__AMXTILE__)) && (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__AVX512BF16__)

#define KH_TRAIN_TILES
#include "tile_config.h"
#include "train_tiles.h"

namespace kh {
namespace {

inline void begin() { configure_tiles(); }
inline void end() { _tile_release(); }

[[gnu::always_inline]] inline void one_step(const uint16_t* left, const uint16_t* right) {
  _tile_loadd(4, left, 64);
  _tile_loadd(6, right, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, right + 512, 64);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, left + 512, 64);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// sums [2][2][16][16] ← (sums +) left panel · right panel; steps of a panel lie behind each other. What waits is stored meanwhile.
void meet(const uint16_t* left, const uint16_t* right, int steps, float* sums, bool add, Lines* waiting = nullptr) {
  if (add) {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + 256, 64);
    _tile_loadd(2, sums + 512, 64);
    _tile_loadd(3, sums + 768, 64);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  int s = 0;
  if (waiting)
    for (; s < steps && waiting->row + 2 <= waiting->rows; ++s, left += kPair, right += kPair) {
      one_step(left, right);
      waiting->one();
      waiting->one();
    }
  for (; s < steps; ++s, left += kPair, right += kPair) one_step(left, right);
  if (waiting) waiting->rest();
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

}  // namespace
}  // namespace kh

#include "train_small.h"

namespace kh {
const TrainKernels* train_amx() { return &kTraining; }
}  // namespace kh

#else

namespace kh {
const TrainKernels* train_amx() { return nullptr; }
}  // namespace kh

#endif
