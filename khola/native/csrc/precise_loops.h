// The products of precise.h, for the one file that includes this: a weight, however it is packed, becomes float32 a tile of inputs at a time,
// and meets all rows while it lies in a first-level cache.
#pragma once

#include <cmath>
#include <cstring>

#include "exponential.h"
#include "layout.h"
#include "precise.h"

namespace kh {
namespace {

// A register, and rows whose sums fit into all of them together.
#if defined(__AVX512F__)
constexpr int kLane = 16, kRowsTogether = 8;
#elif defined(__AVX2__)
constexpr int kLane = 8, kRowsTogether = 3;
#elif defined(__aarch64__)
constexpr int kLane = 4, kRowsTogether = 3;
#else
constexpr int kLane = 4, kRowsTogether = 1;
#endif
constexpr int kLanes = kStrip / kLane;
typedef float Lane __attribute__((vector_size(kLane * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLane * sizeof(int32_t))));
typedef uint32_t Words __attribute__((vector_size(kLane * sizeof(uint32_t))));
typedef uint16_t Shorts __attribute__((vector_size(kLane * sizeof(uint16_t))));

template <typename Vector = Lane>
inline Vector load(const void* from) {
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline void put(float* to, const Lane& v) { std::memcpy(to, &v, sizeof(v)); }

inline Lane where(const Ints& which, const Lane& a, const Lane& b) {
  Lane chosen;
  choose<Lane, Ints>(which, a, b, chosen);
  return chosen;
}

constexpr int kBlockRows = 16;                // rows of an operand that lie together
constexpr int kRowsAtOnce = 256;              // rows that one unpacking of a tile serves
constexpr int kPanelFloats = kDeep * kStrip;  // numbers of a strip pair's tiles of the same inputs

// out ← x · panel, or out ← out + x · panel; `panel` is [steps][32], rows of x and out lie apart as told. One sum an output, in order.
template <int Rows>
inline void multiply_rows(const float* x, size_t x_stride, const float* panel, int steps, float* out, size_t out_stride, bool first) {
  Lane sum[Rows][kLanes] = {};
  for (int k = 0; k < steps; ++k, panel += kStrip)
#pragma GCC unroll 8
    for (int j = 0; j < kLanes; ++j) {
      const Lane line = load(panel + j * kLane);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) sum[r][j] += line * x[r * x_stride + k];
    }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kLanes; ++j) {
      float* to = out + r * out_stride + j * kLane;
      put(to, first ? sum[r][j] : load(to) + sum[r][j]);
    }
}

// The same for any number of rows: as many together as registers hold, then those that are left.
template <int Rows = kRowsTogether>
inline void multiply(const float* x, size_t x_stride, const float* panel, int steps, float* out, size_t out_stride, int rows, bool first) {
  for (; rows >= Rows; rows -= Rows, x += Rows * x_stride, out += Rows * out_stride)
    multiply_rows<Rows>(x, x_stride, panel, steps, out, out_stride, first);
  if constexpr (Rows > 1) multiply<Rows - 1>(x, x_stride, panel, steps, out, out_stride, rows, first);
}

inline Lane exponential(Lane x) {
  exponentiate<Lane, Ints, Words>(x);
  return x;
}

inline float exponential(float x) { return exponential(Lane{} + x)[0]; }

// Where rows of an operand lie: sixteen together, and of these, 64 inputs of each row one after another.
inline float* plain_of(const Operand& a, int row, int deep) {
  const int block = row / kBlockRows, rows = std::min(kBlockRows, a.rows - block * kBlockRows);
  return a.plain + static_cast<size_t>(block) * kBlockRows * a.k_pad + (static_cast<size_t>(deep) * rows + row % kBlockRows) * kDeep;
}

inline float norm_factor(const float* x, int n, const Norm& norm) {
  double sums[8] = {}, square = 0;
  int i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(x[i + j]) * x[i + j];
  for (; i < n; ++i) sums[i % 8] += static_cast<double>(x[i]) * x[i];
  for (const double sum : sums) square += sum;
  return static_cast<float>(1.0 / std::sqrt(square / n + static_cast<double>(norm.epsilon)));
}

void to_plain(const float* x, int stride, int k, const Norm& norm, Operand& operand, const Part& part) {
  for (int r = part.row0; r < part.row1; ++r) {
    const float* row = x + static_cast<size_t>(r) * stride;
    const float factor = norm.weight ? norm_factor(row, k, norm) : 1.0f;
    for (int i = part.input0; i < part.input1; i += kDeep) {
      float* to = plain_of(operand, r, i / kDeep);
      const int count = std::max(0, std::min(kDeep, k - i));
      for (int j = 0; j < count; ++j) to[j] = norm.weight ? row[i + j] * factor * (norm.weight[i + j] + norm.offset) : row[i + j];
      for (int j = count; j < kDeep; ++j) to[j] = 0;
    }
  }
}

// The codes of inputs 4 · quad and the next three, a byte each, of the outputs of a tile from n on.
template <int Bits>
inline Words quads_of(const uint8_t* tile, const uint8_t* low, int quad, int n) {
  if constexpr (Bits == 8) return load<Words>(tile + 64 * quad + 4 * n);
  const int shift = quad / 8 * 4, place = 64 * (quad % 8) + 4 * n;
  Words four = load<Words>(tile + place) >> shift & 0x0f0f0f0f;
  if constexpr (Bits == 5) {
    uint32_t fifths[2];
    std::memcpy(fifths, tile + 512 + 8 * quad, 8);
    Words last, places;  // whether an output is one of the last eight, and where its four bits are
    for (int i = 0; i < kLane; ++i) last[i] = (n + i) / 8 ? ~0u : 0u, places[i] = 4 * ((n + i) % 8);
    const Words all = (~last & fifths[0]) | (last & fifths[1]);
    // The product has bit i of the four at bit 7 of byte i.
    four |= ((all >> places & 15) * 0x10204080u & 0x80808080u) >> 3;
  }
  if constexpr (Bits == 6) four |= (load<Words>(tile + 512 + 64 * (quad % 4) + 4 * n) >> (quad / 4 * 2) & 0x03030303) << 4;
  if constexpr (Bits == kSplit) four = four << 4 | (load<Words>(low + place) >> shift & 0x0f0f0f0f);
  return four;
}

// Scales and minima are finite, because packing refuses others: a power of two makes the exponent that of the wider form.
inline Lane halves_of(const uint16_t* from) {
  const Words half = __builtin_convertvector(load<Shorts>(from), Words);
  const Lane size = reinterpret_cast<Lane>((half & 0x7fff) << 13) * 5.192296858534828e33f;
  return reinterpret_cast<Lane>(reinterpret_cast<Words>(size) | (half & 0x8000) << 16);
}

// Asks for a sixteenth of a tile's lines, [part, end), so many tiles ahead that memory has answered when they are reached.
inline void read_ahead(const uint8_t* tile, int bytes, int part, int end) {
  constexpr int kTilesAhead = 12;
  for (int line = bytes / 64 * part / 16; line < bytes / 64 * end / 16; ++line) __builtin_prefetch(tile + kTilesAhead * bytes + 64 * line);
}

// One tile of 16 outputs and 64 inputs into half of the columns of a panel.
template <int Bits>
inline void unpack_tile(const kh_weight& w, const uint8_t* tile, float* panel) {
  if constexpr (Bits == 16) {
    for (int pair = 0; pair < kDeep / 2; ++pair, panel += 2 * kStrip) {
      if (pair % 2 == 0) read_ahead(tile, code_bytes(16), pair / 2, pair / 2 + 1);
      for (int n = 0; n < 16; n += kLane) {
        const Words both = load<Words>(tile + 64 * pair + 4 * n);
        put(panel + n, reinterpret_cast<Lane>(both << 16));
        put(panel + kStrip + n, reinterpret_cast<Lane>(both & 0xffff0000));
      }
    }
    return;
  }
  const uint8_t* low = Bits == kSplit ? low_of(w, tile) : nullptr;
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(tile + code_bytes(Bits));
  const int quads = w.group / 4, zero = w.zero;
  for (int quad = 0; quad < kDeep / 4; quad += quads, scales += 16) {
    read_ahead(tile, w.tile_bytes, quad, quad + quads);
    if (Bits == kSplit) read_ahead(low, kLowBytes, quad, quad + quads);
    for (int n = 0; n < 16; n += kLane) {
      const Lane scale = halves_of(scales + n), minimum = w.has_min ? halves_of(scales + kDeep / w.group * 16 + n) : Lane{};
      float* to = panel + 4 * quad * kStrip + n;
      for (int i = quad; i < quad + quads; ++i) {
        const Words four = quads_of<Bits>(tile, low, i, n);
        for (int j = 0; j < 4; ++j, to += kStrip) {
          const Ints code = reinterpret_cast<Ints>(four >> (8 * j) & 255) - zero;
          put(to, scale * __builtin_convertvector(code, Lane) + minimum);
        }
      }
    }
  }
}

using Unpack = void (*)(const kh_weight&, const uint8_t*, float*);

inline Unpack unpack_for(const kh_weight& w) {
  switch (form_bits(w)) {
    case 4: return unpack_tile<4>;
    case 5: return unpack_tile<5>;
    case 6: return unpack_tile<6>;
    case 8: return unpack_tile<8>;
    case kSplit: return unpack_tile<kSplit>;
    default: return unpack_tile<16>;
  }
}

// out ← silu(gate) · up of a block of sums, which are 16 gates and the 16 ups that belong to them.
inline void finish_gated(const Epilogue& end, const float* sums, int row0, int rows, int pair) {
  const int first = pair * kStrip, count = std::min(16, end.n / 2 - first / 2);
  for (int r = 0; r < rows && count > 0; ++r, sums += kStrip) {
    float let[16];
    for (int n = 0; n < 16; n += kLane) {
      const Lane gate = load(sums + n) + (end.bias ? load(end.bias + first + n) : Lane{});
      const Lane up = load(sums + 16 + n) + (end.bias ? load(end.bias + first + 16 + n) : Lane{});
      put(let + n, gate / (1.0f + exponential(-gate)) * up);
    }
    std::memcpy(end.out + end.row_of(row0 + r) * end.out_stride + first / 2, let, sizeof(float) * count);
  }
}

void many(const kh_weight& w, const Operand& a, int pair0, int pair1, const Epilogue& end, Scratch& scratch) {
  const Unpack unpack = unpack_for(w);
  const int deep = w.k_pad / kDeep;
  float *panel = reinterpret_cast<float*>(scratch.data), *sums = panel + kPanelFloats;
  for (int pair = pair0; pair < pair1; ++pair)
    for (int row0 = 0; row0 < a.rows; row0 += kRowsAtOnce) {
      const int count = std::min(kRowsAtOnce, a.rows - row0);
      const uint8_t* tile = w.data + static_cast<size_t>(pair) * deep * 2 * w.tile_bytes;
      for (int d = 0; d < deep; ++d) {
        for (int side = 0; side < 2; ++side, tile += w.tile_bytes) unpack(w, tile, panel + 16 * side);
        for (int r = 0; r < count; r += kBlockRows)
          multiply(plain_of(a, row0 + r, d), kDeep, panel, kDeep, sums + r * kStrip, kStrip, std::min(kBlockRows, count - r), d == 0);
      }
      (end.gated ? finish_gated : finish_portable)(end, sums, row0, count, pair);
    }
}

size_t many_scratch(int, int rows) { return sizeof(float) * (kPanelFloats + static_cast<size_t>(std::min(rows, kRowsAtOnce)) * kStrip); }

}  // namespace
}  // namespace kh
