// The product of many rows: weights expanded to bfloat16, a strip pair at a time, and multiplied by a unit that knows one thing, how to add
// up products of 16 × 32 and 32 × 16 tiles. The unit is the vector unit (kernels_avx512.cc) or the matrix unit (kernels_amx.cc).
//
// A unit has
//   begin(), end()   around every use
//   block<Tiles>(a, a_next, b, steps, c, c_next, first, rows): for Tiles runs of 16 rows and 32 outputs,
//     c[16][16] twice a run (outputs 0..15, then 16..31; runs c_next floats apart) = (first ? 0 : c) + the sum over steps s of tile
//     a + 512 s (runs a_next numbers apart) times the two tiles at b(s) and b(s) + 512. Only `rows` rows count.
// The sum is taken step by step, so that it does not matter how a caller cuts it.
#pragma once

#include "vector512.h"

namespace kh {
namespace {

// Two vectors of 16 outputs, inputs 2p and 2p + 1, as one line of a bfloat16 tile, rounded to nearest.
inline __m512i paired(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17,
                                         1, 16, 0);
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even)));
}

// One tile of 16 × 64 as two bfloat16 tiles of [16 pairs of inputs][16 outputs][2], `apart` bytes from each other.
template <int Bits, int Group, bool HasMin>
void expand_tile(const uint8_t* tile, const uint8_t* low_nibbles, int zero, uint8_t* out, size_t apart) {
  constexpr int kGroups = kDeep / Group;
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(tile + code_bytes(Bits));
  __m512 scale[kGroups], offset[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    scale[g] = load_half(scales + 16 * g);
    offset[g] = HasMin ? load_half(scales + 16 * (kGroups + g)) : _mm512_mul_ps(scale[g], _mm512_set1_ps(static_cast<float>(-zero)));
  }
  // Four bits choose one of sixteen numbers that stand in a register: the codes, less the code that means zero, which 16-bit floats times
  // them give exactly. More bits are converted.
  const __m512 numbers = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                                             _mm512_set1_epi32(zero)));
  const __m512i byte = _mm512_set1_epi32(255);
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) {
    __m512i codes[2];
    if (Bits == 4) {
      codes[0] = _mm512_load_si512(tile + 64 * r);
      codes[1] = _mm512_srli_epi32(codes[0], 4);
    } else {
      load_codes<Bits>(tile, low_nibbles, r, codes[0], codes[1]);
    }
    for (int side = 0; side < 2; ++side) {
      const int g = (side * 32 + 4 * r) / Group;
      __m512 v[4];
      for (int j = 0; j < 4; ++j) {
        const __m512i code = _mm512_srli_epi32(codes[side], static_cast<unsigned>(8 * j));
        if (Bits != 4) v[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_and_si512(code, byte)), scale[g], offset[g]);
        else if (HasMin) v[j] = _mm512_fmadd_ps(_mm512_permutexvar_ps(code, numbers), scale[g], offset[g]);
        else v[j] = _mm512_mul_ps(_mm512_permutexvar_ps(code, numbers), scale[g]);
      }
      uint8_t* here = out + apart * side + 128 * r;
      _mm512_store_si512(here, paired(v[0], v[1]));
      _mm512_store_si512(here + 64, paired(v[2], v[3]));
    }
  }
}

inline void copy_tile(const uint8_t* tile, const uint8_t*, int, uint8_t* out, size_t apart) {
  for (int half = 0; half < 2; ++half)
    for (int line = 0; line < 1024; line += 64) _mm512_store_si512(out + half * apart + line, _mm512_load_si512(tile + half * 1024 + line));
}

using ExpandTile = void (*)(const uint8_t*, const uint8_t*, int, uint8_t*, size_t);

template <int Bits, int Group, bool HasMin>
struct ExpandFor {
  static constexpr ExpandTile run = expand_tile<Bits, Group, HasMin>;
};

inline ExpandTile expand_for(const kh_weight& w) { return w.bits == 16 ? copy_tile : form_of<ExpandTile, ExpandFor>(w); }

// How a product of many rows is cut: inputs so that all rows' part of them stays in the second-level cache, and with it strip pairs
// in runs whose unfinished sums do too.
struct Cut {
  static constexpr size_t kRowBytes = 1200 << 10, kPanelBytes = 512 << 10;
  static constexpr int kPairs = 16;
  int steps, rows;  // of 32 inputs in a piece; rows, padded to whole blocks of 32

  Cut(int k_pad, int num_rows) : rows((num_rows + 31) / 32 * 32) {
    const int all = k_pad / 32;
    const size_t most = std::min(kRowBytes / (static_cast<size_t>(rows) * 64), kPanelBytes / 2048);
    const int pieces = (all + std::max<int>(1, static_cast<int>(most)) - 1) / std::max<int>(1, static_cast<int>(most));
    steps = ((all + pieces - 1) / pieces + 1) / 2 * 2;
  }
  size_t panel_bytes() const { return static_cast<size_t>(steps) * 2048; }
  size_t sums_bytes() const { return static_cast<size_t>(rows) * kStrip * sizeof(float) * kPairs; }
};

// Blocks of int8 rows that the matrix unit multiplies in one reading of the weights.
constexpr int kFewBlocks = 4;

inline size_t many_scratch(int k_pad, int rows) {
  // Fewer rows have a deeper panel, so that neither end of the range is the larger one in both.
  return std::max(Cut(k_pad, 1).panel_bytes() + Cut(k_pad, rows).sums_bytes(), kFewBlocks * starts_bytes(k_pad) + 32768);
}

inline void finish_block(const Epilogue& end, const float* c, int row0, int rows, int pair) {
  for (int r = 0; r < rows; ++r) {
    const float* from = c + r / 16 * 512 + r % 16 * 16;
    finish_row(end, row0 + r, pair, _mm512_load_ps(from), _mm512_load_ps(from + 256));
  }
}

constexpr int kTilesAhead = 12;

template <typename Unit>
void many(const kh_weight& w, const Operand& a, int pair0, int pair1, const Epilogue& end, Scratch& scratch) {
  const Cut cut(w.k_pad, a.rows);
  const ExpandTile expand = expand_for(w);
  const int all = w.k_pad / 32, pieces = (all + cut.steps - 1) / cut.steps;
  uint16_t* panel = reinterpret_cast<uint16_t*>(scratch.data);
  float* sums = reinterpret_cast<float*>(scratch.data + cut.panel_bytes());
  Unit::begin();
  // With one piece nothing is unfinished, and the sums of one block are all that is kept.
  for (int run0 = pair0; run0 < pair1; run0 += Cut::kPairs)
    for (int piece = 0; piece < pieces; ++piece) {
      const int step0 = piece * cut.steps, steps = std::min(cut.steps, all - step0);
      for (int pair = run0; pair < std::min(pair1, run0 + Cut::kPairs); ++pair) {
        const uint8_t* tile = w.data + (static_cast<size_t>(pair) * (all / 2) + step0 / 2) * 2 * w.tile_bytes;
        for (int s = 0; s < steps; s += 2, tile += 2 * w.tile_bytes)
          for (int strip = 0; strip < 2; ++strip) {
            // Memory takes about as long as expanding this many tiles.
            for (int line = 0; line < w.tile_bytes; line += 64)
              _mm_prefetch(reinterpret_cast<const char*>(tile + (strip + kTilesAhead) * w.tile_bytes + line), _MM_HINT_T0);
            const uint8_t* here = tile + strip * w.tile_bytes;
            expand(here, w.split ? low_of(w, here) : nullptr, w.zero, reinterpret_cast<uint8_t*>(panel + s * 1024 + strip * 512), 2048);
          }
        for (int row = 0; row < a.rows; row += 32) {
          float* c = sums + (pieces == 1 ? row / 32 % 2 * 1024 : (static_cast<size_t>(pair - run0) * cut.rows + row) * kStrip);
          const uint16_t* from = a.tiles + (static_cast<size_t>(row / 16) * all + step0) * 512;
          const int rows = std::min(32, a.rows - row);
          const auto b = [panel](int s) { return panel + s * 1024; };
          if (rows > 16) Unit::template block<2>(from, static_cast<size_t>(all) * 512, b, steps, c, 512, piece == 0, rows);
          else Unit::template block<1>(from, 0, b, steps, c, 512, piece == 0, rows);
          if (piece == pieces - 1) finish_block(end, c, row, rows, pair);
        }
      }
    }
  Unit::end();
}

}  // namespace
}  // namespace kh
