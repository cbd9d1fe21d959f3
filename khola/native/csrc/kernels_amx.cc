// The kernels for processors with a matrix unit (AMX tiles, int8 and bf16): sixteen rows cost about as much as one, and long inputs run
// an order of magnitude faster than on the vector unit.
//
// Source   Intel, Architecture Instruction Set Extensions Programming Reference (319433), chapter 3.

#include "kernels.h"

// Clang spelt its macros without the second underscore before version 15.
#if (defined(__AMX_TILE__) || defined(__AMXTILE__)) && (defined(__AMX_INT8__) || defined(__AMXINT8__)) && \
    (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__AVX512BF16__)

#include "attend512.h"
#include "rates.h"
#include "tile_config.h"

namespace kh {

namespace {

// Tiles 0 to 3 are sums, 4 and 5 rows of the input, 6 and 7 weights, keys or values.
struct TileUnit {
  static void begin() {
    configure_tiles();
  }
  static void end() { _tile_release(); }

  // So many steps of the weights stay in the first-level cache from block to block. The rest of them, and the rows, pass it by: otherwise each
  // would push out the other before it is wanted again.
  static constexpr int kKept = 16;

  template <int Tiles, typename B>
  static void block(const uint16_t* a, size_t a_next, B b, int steps, float* c, size_t c_next, bool first, int) {
    if (first) {
      _tile_zero(0);
      _tile_zero(1);
      if (Tiles == 2) {
        _tile_zero(2);
        _tile_zero(3);
      }
    } else {
      _tile_loadd(0, c, 64);
      _tile_loadd(1, c + 256, 64);
      if (Tiles == 2) {
        _tile_loadd(2, c + c_next, 64);
        _tile_loadd(3, c + c_next + 256, 64);
      }
    }
    const int kept = std::min(steps, kKept);
    for (int s = 0; s < kept; ++s) step<Tiles, false>(a + s * 512, a_next, b(s));
    for (int s = kept; s < steps; ++s) step<Tiles, true>(a + s * 512, a_next, b(s));
    _tile_stored(0, c, 64);
    _tile_stored(1, c + 256, 64);
    if (Tiles == 2) {
      _tile_stored(2, c + c_next, 64);
      _tile_stored(3, c + c_next + 256, 64);
    }
  }

 private:
  template <int Tiles, bool WeightsPass>
  [[gnu::always_inline]] static inline void step(const uint16_t* rows, size_t next, const uint16_t* weights) {
    _tile_stream_loadd(4, rows, 64);
    if (WeightsPass) _tile_stream_loadd(6, weights, 64);
    else _tile_loadd(6, weights, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (WeightsPass) _tile_stream_loadd(7, weights + 512, 64);
    else _tile_loadd(7, weights + 512, 64);
    _tile_dpbf16ps(1, 4, 7);
    if (Tiles == 2) {
      _tile_stream_loadd(5, rows + next, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
};

// From five rows on the matrix unit multiplies the codes: below, the vector unit keeps up with memory.
constexpr int kVectorRows = 4;

// The codes of a tile as bytes [16 quads][16 outputs][4], less the code that means zero: signed unless the form has minima. `less` gives what
// the lowest six bits of a byte mean.
template <int Bits, bool HasMin>
[[gnu::always_inline]] inline void unpack_tile(const uint8_t* tile, const uint8_t* low_nibbles, __m512i zero, __m512i less, uint8_t* out) {
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) {
    __m512i low, high;
    if constexpr (Bits == 4 || Bits == 5 || Bits == 6) {
      __m512i v = _mm512_load_si512(tile + 64 * r), u = _mm512_srli_epi16(v, 4);
      if constexpr (Bits == 6) {
        const __m512i two = _mm512_set1_epi8(0x30), p = _mm512_load_si512(tile + 512 + 64 * (r % 4));
        v = _mm512_ternarylogic_epi32(two, r < 4 ? _mm512_slli_epi16(p, 4) : _mm512_slli_epi16(p, 2), v, 0xca);
        u = _mm512_ternarylogic_epi32(two, r < 4 ? p : _mm512_srli_epi16(p, 2), u, 0xca);
      }
      low = _mm512_permutexvar_epi8(v, less);
      high = _mm512_permutexvar_epi8(u, less);
      if constexpr (Bits == 5) {
        const uint64_t* fifth = reinterpret_cast<const uint64_t*>(tile + 512);
        const __m512i sixteen = _mm512_set1_epi8(16);
        low = _mm512_mask_add_epi8(low, _cvtu64_mask64(fifth[r]), low, sixteen);
        high = _mm512_mask_add_epi8(high, _cvtu64_mask64(fifth[r + 8]), high, sixteen);
      }
    } else {
      load_codes<Bits>(tile, low_nibbles, r, low, high);
      if (!HasMin) low = _mm512_sub_epi8(low, zero), high = _mm512_sub_epi8(high, zero);
    }
    _mm512_store_si512(out + 64 * r, low);
    _mm512_store_si512(out + 64 * (r + 8), high);
  }
}

// What six bits of codes of a form mean: less its zero, and for fewer bits whatever lies above them.
template <int Bits>
inline __m512i less_zero(int zero) {
  alignas(64) int8_t less[64];
  for (int i = 0; i < 64; ++i) less[i] = static_cast<int8_t>((Bits == 6 ? i : i & 15) - zero);
  return _mm512_load_si512(less);
}

// While the matrix unit multiplies, the vector unit has one port for floating point instead of two, and what a tile stores is slow to load
// until it has left the store buffer. So the two take turns at runs of tiles, just long enough that what they leave for each other stays in
// the first-level cache: the codes of a run are unpacked, multiplied, and their sums are scaled.
struct FewBuffers {
  static constexpr int kRun = 2;  // tiles of either strip, with two sums each
  alignas(64) uint8_t codes[2 * kRun][1024 + 64];
  alignas(64) int32_t sums[2][kRun * 512];
  alignas(64) float total[kFewBlocks][2][16][16];

  // Rows beyond the last are read as sums, and must not be slow or trap.
  FewBuffers() { std::memset(sums, 0, sizeof sums); }
};

// Tiles of a run: as many as have their sums in the buffers.
template <int Group>
constexpr int run_of() { return FewBuffers::kRun * 2 / Sums<Group>::kCount; }

// One sum of the codes with all rows. The numbers of tiles must be written out.
#define KH_SUM(sum, rows, weights, codes)               \
  _tile_zero(sum);                                      \
  _tile_loadd(weights, codes, 64);                      \
  if (HasMin) _tile_dpbsud(sum, rows, weights);         \
  else _tile_dpbssd(sum, rows, weights)

// Sums of the codes of `count` tiles of two strips with all rows: [16][16] for every `Inputs` inputs. A sum is stored two products later, since
// a store waits for its product, and what follows waits for the store.
template <int Inputs, bool HasMin>
[[gnu::always_inline]] inline void sum_run(const int8_t* q, size_t q_next, int count, FewBuffers& buffers) {
  constexpr int kTurns = 32 / Inputs;
  int32_t *left = buffers.sums[0], *right = buffers.sums[1];
  for (int i = 0; i < count * kTurns; ++i, left += 512, right += 512) {
    const uint8_t* codes = buffers.codes[i / kTurns * 2] + i % kTurns * 512;
    const int8_t* rows = q + i / kTurns * q_next + i % kTurns * 32;
    _tile_loadd(4, rows, kDeep);
    KH_SUM(0, 4, 6, codes);
    if (i) _tile_stored(2, left - 256, 64);
    KH_SUM(1, 4, 7, codes + 1088);
    if (i) _tile_stored(3, right - 256, 64);
    _tile_loadd(5, rows + Inputs, kDeep);
    KH_SUM(2, 5, 6, codes + Inputs * 16);
    _tile_stored(0, left, 64);
    KH_SUM(3, 5, 7, codes + 1088 + Inputs * 16);
    _tile_stored(1, right, 64);
  }
  _tile_stored(2, left - 256, 64);
  _tile_stored(3, right - 256, 64);
}

#undef KH_SUM

// What the vector unit does with the sums of a tile; the same operations in the same order as few_rows.
template <int Bits, int Group, bool HasMin, int Rows>
[[gnu::always_inline]] inline void scale_tile(const uint8_t* tile, const int32_t* sums, const float* turn, const float* mass, int rows, __m512* total) {
  using S = Sums<Group>;
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(tile + code_bytes(Bits));
#pragma GCC unroll 4
  for (int s = 0; s < S::kCount; ++s) {
    const int place = s * S::kInputs / Group * 16;
    const __m512 scale = load_half(scales + place);
    const __m512 minimum = HasMin ? load_half(scales + kDeep / Group * 16 + place) : _mm512_setzero_ps();
    const float* turns = turn + s * S::kInputs / kGroup * rows;
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + s * 256 + m * 16));
      total[m] = _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(turns[m])), sum, total[m]);
      if (HasMin) total[m] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(mass[s * rows + m]), total[m]);
    }
  }
}

// Blocks of rows that share the unpacking of codes.
struct FewBlocks {
  int count;
  Operand rows[kFewBlocks];
  Starts starts[kFewBlocks];
};

// A run of tiles of a strip pair.
struct FewRun {
  const uint8_t* tiles;
  int first, count;  // tiles of either strip
};

// Scales a run's sums, [strip][tile], and unpacks the next run's tiles meanwhile.
template <int Bits, int Group, bool HasMin, int Rows, typename Unpack>
[[gnu::always_inline]] inline void scale_run(const FewRun& run, const Operand& a, const Starts& starts, const FewBuffers& buffers, bool begin,
                                             float (*totals)[16][16], int unpacked, Unpack unpack) {
  using S = Sums<Group>;
  constexpr int kBytes = tile_bytes_of(Bits, Group, HasMin);
  for (int strip = 0; strip < 2; ++strip) {
    __m512 total[Rows];
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) total[m] = begin ? _mm512_setzero_ps() : _mm512_load_ps(totals[strip][m]);
    for (int i = 0; i < run.count; ++i) {
      const int deep = run.first + i;
      scale_tile<Bits, Group, HasMin, Rows>(run.tiles + (2 * i + strip) * kBytes, buffers.sums[strip] + i * S::kCount * 256, scales_at(a, 2 * deep),
                                            HasMin ? starts.mass + static_cast<size_t>(deep) * S::kCount * a.rows : nullptr, a.rows, total);
      if (strip * run.count + i < unpacked) unpack(strip * run.count + i);
    }
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) _mm512_store_ps(totals[strip][m], total[m]);
  }
  for (int i = 2 * run.count; i < unpacked; ++i) unpack(i);
}

// Memory is asked for long before a tile is wanted, and the first-level cache, whose few requests under way would have to wait for memory,
// shortly before.
template <int Bytes>
[[gnu::always_inline]] inline void fetch_ahead(const uint8_t* tile) {
  for (int line = 0; line < Bytes; line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(tile + 24 * Bytes + line), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(tile + 4 * Bytes + line), _MM_HINT_T0);
  }
}

// Strip pairs of blocks of up to Rows rows; numbers that belong to rows beyond the last are computed from whatever lies there and dropped.
template <int Bits, int Group, bool HasMin, int Rows>
void few_tiles(const kh_weight& w, const FewBlocks& blocks, int pair0, int pair1, const Epilogue& end, FewBuffers& buffers) {
  constexpr int kBytes = tile_bytes_of(Bits, Group, HasMin), kMost = run_of<Group>();
  const int deep = w.k_pad / kDeep, runs = (deep + kMost - 1) / kMost;
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(w.zero)), less = less_zero<Bits>(w.zero);
  const auto run_at = [&](int pair, int number) {
    const int first = deep * number / runs;
    return FewRun{w.data + (static_cast<size_t>(pair) * deep + first) * 2 * kBytes, first, deep * (number + 1) / runs - first};
  };
  FewRun next = run_at(pair0, 0);
  const auto unpack = [&](int i) {
    const uint8_t *tile = next.tiles + i * kBytes, *lows = Bits == kSplit ? low_of(w, tile) : nullptr;
    fetch_ahead<kBytes>(tile);
    if constexpr (Bits == kSplit) fetch_ahead<kLowBytes>(lows);
    unpack_tile<Bits, HasMin>(tile, lows, zero, less, buffers.codes[i]);
  };
  for (int i = 0; i < 2 * next.count; ++i) unpack(i);
  for (int pair = pair0; pair < pair1; ++pair) {
    for (int number = 0; number < runs; ++number) {
      const FewRun run = next;
      next = number + 1 < runs ? run_at(pair, number + 1) : pair + 1 < pair1 ? run_at(pair + 1, 0) : FewRun{nullptr, 0, 0};
      for (int block = 0; block < blocks.count; ++block) {
        const Operand& a = blocks.rows[block];
        sum_run<Sums<Group>::kInputs, HasMin>(codes_at(a, 0, run.first), static_cast<size_t>(a.rows) * kDeep, run.count, buffers);
        scale_run<Bits, Group, HasMin, Rows>(run, a, blocks.starts[block], buffers, number == 0, buffers.total[block],
                                             block + 1 == blocks.count ? 2 * next.count : 0, unpack);
      }
    }
    for (int block = 0; block < blocks.count; ++block)
      for (int m = 0; m < blocks.rows[block].rows; ++m) {
        const auto& total = buffers.total[block];
        finish_row(end, block * kFewRows + m, pair, _mm512_load_ps(total[0][m]), _mm512_load_ps(total[1][m]));
      }
  }
}

using FewTiles = void (*)(const kh_weight&, const FewBlocks&, int, int, const Epilogue&, FewBuffers&);

template <int Rows>
struct TilesFor {
  template <int Bits, int Group, bool HasMin>
  struct Made {
    static constexpr FewTiles run = few_tiles<Bits, Group, HasMin, Rows>;
  };
};

// Sixteen-bit weights are tiles as they lie; all numbers of rows take the same way, since the two units round differently.
void few_tiles16(const kh_weight& w, const Operand& a, int pair0, int pair1, const Epilogue& end, FewBuffers& buffers) {
  TileConfig config;
  for (int tile : {0, 1, 4}) config.set(tile, a.rows, 64);
  for (int tile : {6, 7}) config.set(tile, 16, 64);
  config.load();
  const int deep = w.k_pad / kDeep;
  for (int pair = pair0; pair < pair1; ++pair) {
    const uint8_t* tile = w.data + static_cast<size_t>(pair) * deep * 4096;
    _tile_zero(0);
    _tile_zero(1);
    for (int d = 0; d < deep; ++d, tile += 4096)
      for (int half = 0; half < 2; ++half) {
        for (int line = 0; line < 1024; line += 64) {
          _mm_prefetch(reinterpret_cast<const char*>(tile + half * 1024 + line + 8192), _MM_HINT_T0);
          _mm_prefetch(reinterpret_cast<const char*>(tile + half * 1024 + line + 8192 + 2048), _MM_HINT_T0);
        }
        _tile_loadd(4, a.rows16 + d * kDeep + half * 32, static_cast<size_t>(a.k_pad) * 2);
        _tile_loadd(6, tile + half * 1024, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, tile + 2048 + half * 1024, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
    const auto& total = buffers.total[0];
    _tile_stored(0, buffers.total[0][0], 64);
    _tile_stored(1, buffers.total[0][1], 64);
    for (int m = 0; m < a.rows; ++m) finish_row(end, m, pair, _mm512_load_ps(total[0][m]), _mm512_load_ps(total[1][m]));
  }
  _tile_release();
}

// One block of rows, or several whose last is too high for the vector unit.
void few_blocks(const kh_weight& w, const Operand& a, int pair0, int pair1, const Epilogue& end, Scratch& scratch) {
  FewBuffers buffers;
  if (w.bits == 16) return few_tiles16(w, a, pair0, pair1, end, buffers);
  FewBlocks blocks{(a.rows + kFewRows - 1) / kFewRows, {}, {}};
  Scratch rest = scratch;
  for (int block = 0; block < blocks.count; ++block, rest.data += starts_bytes(w.k_pad)) {
    blocks.rows[block] = a.block(block);
    if (w.has_min) blocks.starts[block] = starts_of(w, blocks.rows[block], rest);
  }
  const int inputs = std::min<int>(w.group, kGroup), rows = std::min(a.rows, kFewRows);
  TileConfig config;
  for (int tile : {0, 1, 2, 3}) config.set(tile, rows, 64);
  for (int tile : {4, 5}) config.set(tile, rows, inputs);
  for (int tile : {6, 7}) config.set(tile, inputs / 4, 64);
  config.load();
  const FewTiles run = rows <= 8    ? form_of<FewTiles, TilesFor<8>::Made>(w)
                       : rows <= 12 ? form_of<FewTiles, TilesFor<12>::Made>(w)
                                    : form_of<FewTiles, TilesFor<16>::Made>(w);
  run(w, blocks, pair0, pair1, end, buffers);
  _tile_release();
}

// Strip pairs that one block of rows works on before another does.
constexpr int kTurn = 8;

// All rows but those of the last block, or these alone, if `last`.
inline Operand cut(const Operand& a, int blocks, bool last) {
  if (last) return a.block(blocks - 1);
  Operand first = a;
  first.rows = (blocks - 1) * kFewRows;
  return first;
}

void few_amx(const kh_weight& w, const Operand& a, int pair0, int pair1, const Epilogue& end, Scratch& scratch) {
  const int blocks = (a.rows + kFewRows - 1) / kFewRows, last = a.rows - (blocks - 1) * kFewRows;
  if (w.bits != 16 && last > kVectorRows) return few_blocks(w, a, pair0, pair1, end, scratch);
  if (blocks == 1) return (w.bits != 16 ? few : few_blocks)(w, a, pair0, pair1, end, scratch);
  Epilogue other = end;
  other.rows += (blocks - 1) * kFewRows;
  for (int pair = pair0; pair < pair1; pair += kTurn) {
    few_amx(w, cut(a, blocks, false), pair, std::min(pair + kTurn, pair1), end, scratch);
    few_amx(w, cut(a, blocks, true), pair, std::min(pair + kTurn, pair1), other, scratch);
  }
}

constexpr Kernels kAmx = {"amx", to_int8, to_rows16,        to_tiles,       few_amx,     many<TileUnit>, many_scratch, rotate,
                          store, attend<TileUnit>, attend_scratch, part_floats, table_row,      rms_norm,     silu_mul,
                          kFewBlocks, few_high, true, {{"amx_bf16", amx<false>}, {"amx_int8", amx<true>}}};

}  // namespace

const Kernels* kernels_amx() { return &kAmx; }

}  // namespace kh

#else

namespace kh {
const Kernels* kernels_amx() { return nullptr; }
}  // namespace kh

#endif
