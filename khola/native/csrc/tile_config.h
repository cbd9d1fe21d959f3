// The shapes of the matrix unit's tiles.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace kh {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int num_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(num_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
  void load() const {
    // GCC 12 believes that only the first bytes are read, and would drop the stores that fill the rest.
    asm volatile("" ::"r"(this) : "memory");
    _tile_loadconfig(this);
  }
};

// All eight tiles with sixteen rows of 64 bytes.
inline void configure_tiles() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, 16, 64);
  config.load();
}

}  // namespace
}  // namespace kh
