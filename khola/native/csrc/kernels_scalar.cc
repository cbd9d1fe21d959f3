// The kernels in plain C++: what every other instruction set is tested against, and what runs where nothing better is known.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "cached.h"
#include "kernels.h"

namespace kh {

namespace {

float norm_factor(const float* x, int n, const Norm& norm) {
  double square = 0;
  for (int i = 0; i < n; ++i) square += static_cast<double>(x[i]) * x[i];
  return static_cast<float>(1.0 / std::sqrt(square / n + static_cast<double>(norm.epsilon)));
}

float normed(const float* x, int i, const Norm& norm, float factor) {
  return norm.weight ? x[i] * factor * (norm.weight[i] + norm.offset) : x[i];
}

void to_int8(const float* x, int stride, int k, const Norm& norm, Operand& operand, const Part& part) {
  for (int r = part.row0; r < part.row1; ++r) {
    const float* row = x + static_cast<size_t>(r) * stride;
    const float factor = norm.weight ? norm_factor(row, k, norm) : 1.0f;
    for (int g = part.input0 / kGroup; g < part.input1 / kGroup; ++g) {
      float values[kGroup], greatest = 0;
      bool sound = true;
      for (int i = 0; i < kGroup; ++i) {
        const int column = g * kGroup + i;
        values[i] = column < k ? normed(row, column, norm, factor) : 0.0f;
        greatest = std::max(greatest, std::fabs(values[i]));
        sound &= std::isfinite(values[i]);
      }
      // A row that is not a number must not come out as one: its scale says so, and its codes are zero. So are those of numbers so small
      // that the inverse would overflow.
      const float scale = sound ? greatest / 127.0f : NAN, inverse = scale >= FLT_MIN ? 1.0f / scale : 0.0f;
      operand.scale[static_cast<size_t>(r) * (operand.k_pad / kGroup) + g] = scale;
      for (int half = 0; half < 2; ++half) {
        int32_t sum = 0;
        for (int i = half * kSumGroup; i < (half + 1) * kSumGroup; ++i) {
          const int q = sound ? static_cast<int>(std::nearbyint(values[i] * inverse)) : 0;
          operand.q[static_cast<size_t>(r) * operand.k_pad + g * kGroup + i] = static_cast<int8_t>(q);
          sum += q;
        }
        operand.sum[static_cast<size_t>(r) * (operand.k_pad / kSumGroup) + 2 * g + half] = sum;
      }
    }
  }
}

void to_rows16(const float* x, int stride, int k, const Norm& norm, Operand& operand, const Part& part) {
  for (int r = part.row0; r < part.row1; ++r) {
    const float* row = x + static_cast<size_t>(r) * stride;
    const float factor = norm.weight ? norm_factor(row, k, norm) : 1.0f;
    uint16_t* out = operand.rows16 + static_cast<size_t>(r) * operand.k_pad;
    for (int i = part.input0; i < part.input1; ++i) out[i] = i < k ? to_bfloat(normed(row, i, norm, factor)) : 0;
  }
}

uint16_t* tile_place(const Operand& operand, int r, int i) {
  const size_t tile = static_cast<size_t>(r / 16) * (operand.k_pad / 32) + i / 32;
  return operand.tiles + tile * 512 + r % 16 * 32 + i % 32;
}

void to_tiles(const float* x, int stride, int k, const Norm& norm, Operand& operand, const Part& part) {
  for (int r = part.row0; r < (part.row1 + 15) / 16 * 16; ++r) {
    const float* row = x + static_cast<size_t>(r) * stride;
    const float factor = norm.weight && r < part.row1 ? norm_factor(row, k, norm) : 1.0f;
    for (int i = part.input0; i < part.input1; ++i)
      *tile_place(operand, r, i) = r < part.row1 && i < k ? to_bfloat(normed(row, i, norm, factor)) : 0;
  }
}

// One output of one int8 row: integer sums a group of the weight, scaled and added up in input order.
template <typename Code>
float dot_int8(const kh_weight& w, const Operand& a, int r, int n, Code code) {
  float total = 0;
  for (int k = 0; k < w.k_pad; k += w.group) {
    const uint8_t* tile = tile_of(w, n, k);
    uint8_t* here = const_cast<uint8_t*>(tile);
    const int place = k % 64 / w.group * 16 + n % 16;
    const float scale = from_half(scales_of(here, w)[place]), minimum = w.has_min ? from_half(minima_of(here, w)[place]) : 0.0f;
    const int step = std::min<int>(w.group, kGroup);
    for (int start = k; start < k + w.group; start += step) {
      int32_t sum = 0, plain = 0;
      for (int i = start; i < start + step; ++i) {
        const int q = a.q[static_cast<size_t>(r) * a.k_pad + i];
        sum += q * code(tile, n % 16, i % 64);
        plain += q;
      }
      const float turn = a.scale[static_cast<size_t>(r) * (a.k_pad / kGroup) + start / kGroup];
      total += turn * (scale * static_cast<float>(sum) + minimum * static_cast<float>(plain));
    }
  }
  return total;
}

template <typename Value>
float dot_float(const kh_weight& w, int n, Value value) {
  float total = 0;
  for (int k = 0; k < w.k_pad; ++k) total += value(k) * from_bfloat(to_bfloat(value_of(w, n, k)));
  return total;
}

template <typename Dot>
void blocks(int rows, int pair0, int pair1, const Epilogue& end, Dot dot) {
  float block[16 * kStrip];
  for (int pair = pair0; pair < pair1; ++pair)
    for (int row0 = 0; row0 < rows; row0 += 16) {
      const int count = std::min(16, rows - row0);
      for (int r = 0; r < count; ++r)
        for (int n = 0; n < kStrip; ++n) block[r * kStrip + n] = dot(row0 + r, pair * kStrip + n);
      finish_portable(end, block, row0, count, pair);
    }
}

void few(const kh_weight& w, const Operand& a, int pair0, int pair1, const Epilogue& end, Scratch&) {
  blocks(a.rows, pair0, pair1, end, [&](int r, int n) {
    if (w.bits != 16) return dot_int8(w, a, r, n, [&](const uint8_t* tile, int o, int i) { return code_in(w, tile, o, i) - w.zero; });
    return dot_float(w, n, [&](int k) { return from_bfloat(a.rows16[static_cast<size_t>(r) * a.k_pad + k]); });
  });
}

void few_high(const kh_weight& w, const Operand& a, int pair0, int pair1, const Epilogue& end, Scratch&) {
  const auto code = [](const uint8_t* tile, int n, int k) { return 2 * code_of(tile, 4, n, k) - kHighZero; };
  blocks(a.rows, pair0, pair1, end, [&](int r, int n) { return kHighStep * dot_int8(w, a, r, n, code); });
}

void many(const kh_weight& w, const Operand& a, int pair0, int pair1, const Epilogue& end, Scratch&) {
  blocks(a.rows, pair0, pair1, end, [&](int r, int n) {
    return dot_float(w, n, [&](int k) { return from_bfloat(*tile_place(a, r, k)); });
  });
}

size_t many_scratch(int, int) { return 64; }

void rotate(float* x, int heads, int size, const float* cosine, const float* sine, int half) {
  for (int h = 0; h < heads; ++h, x += size)
    for (int i = 0; i < half; ++i) {
      const float left = x[i], right = x[i + half];
      x[i] = left * cosine[i] - right * sine[i];
      x[i + half] = right * cosine[i] + left * sine[i];
    }
}

using Place = size_t (*)(int token, int i);

// One token's numbers of one head.
void store_head(const LayerPlanes& p, uint8_t* head, const float* x, int size, int token, Place place, const float* steps) {
  if (!p.coded) {
    uint16_t* numbers = reinterpret_cast<uint16_t*>(head);
    for (int i = 0; i < size; ++i) numbers[place(token, i)] = to_bfloat(x[i]);
    return;
  }
  const auto number = [=](int i) { return steps ? x[i] / steps[i] : x[i]; };
  float greatest = 0;
  for (int i = 0; i < size; ++i) greatest = std::isfinite(greatest) ? std::max(std::fabs(number(i)), greatest) : greatest;
  const CodeScale scale(greatest);
  for (int i = 0; i < size; ++i)
    head[place(token, i)] = static_cast<uint8_t>(scale.inverse > 0 ? static_cast<int8_t>(std::nearbyint(number(i) * scale.inverse)) : 0);
  LayerPlanes::scales_of(head, size)[token] = scale.kept;
}

float number_of(const LayerPlanes& p, uint8_t* head, int size, int token, size_t at) {
  if (!p.coded) return from_bfloat(reinterpret_cast<uint16_t*>(head)[at]);
  return static_cast<float>(static_cast<int8_t>(head[at])) * from_bfloat(LayerPlanes::scales_of(head, size)[token]);
}

void store(const LayerPlanes& p, const float* k, const float* v, int32_t page, int token) {
  for (int head = 0; head < p.heads; ++head) {
    store_head(p, p.keys_of(page, head), k + head * p.key_size, p.key_size, token, key_place, p.steps_of(head));
    store_head(p, p.values_of(page, head), v + head * p.value_size, p.value_size, token, value_place, nullptr);
  }
}

void attend(const LayerPlanes& p, const AttendTask& t, Scratch&) {
  std::vector<float> mixed(p.value_size);
  const float* steps = p.coded ? p.steps_of(t.key_head) : nullptr;
  for (int r = 0; r < t.rows; ++r)
    for (int g = 0; g < t.group; ++g) {
      const float* q = t.q + static_cast<size_t>(r) * t.q_stride + g * p.key_size;
      const int last = t.position + r, first = t.window ? std::max(0, last - t.window + 1) : 0;
      float greatest = -INFINITY, mass = 0;
      std::fill(mixed.begin(), mixed.end(), 0.0f);
      for (int at = first; at <= last; ++at) {
        const int32_t page = t.pages[at / KH_PAGE];
        const int token = at % KH_PAGE;
        uint8_t *keys = p.keys_of(page, t.key_head), *values = p.values_of(page, t.key_head);
        float score = 0;
        for (int i = 0; i < p.key_size; ++i)
          score += from_bfloat(to_bfloat(steps ? q[i] * steps[i] : q[i])) * number_of(p, keys, p.key_size, token, key_place(token, i));
        score *= t.scale;
        const float top = std::max(greatest, score), shrink = std::exp(greatest - top), share = std::exp(score - top);
        mass = mass * shrink + share;
        for (int i = 0; i < p.value_size; ++i) {
          const float value = p.values_in_keys ? number_of(p, keys, p.key_size, token, key_place(token, i))
                                               : number_of(p, values, p.value_size, token, value_place(token, i));
          mixed[i] = mixed[i] * shrink + share * value;
        }
        greatest = top;
      }
      float* out = t.out + static_cast<size_t>(r) * t.out_stride + g * p.value_size;
      for (int i = 0; i < p.value_size; ++i) out[i] = mixed[i] / mass;
    }
}

size_t attend_scratch(int, int, int) { return 64; }

void table_row(const kh_weight& w, int row, float* out) {
  for (int k = 0; k < w.k; ++k) out[k] = value_of(w, row, k);
}

void rms_norm(const float* x, int n, const Norm& norm, float* out) {
  const float factor = norm_factor(x, n, norm);
  for (int i = 0; i < n; ++i) out[i] = normed(x, i, norm, factor);
}

void silu_mul(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

constexpr Kernels kScalar = {"scalar",     to_int8, to_rows16, to_tiles, few,       many,     many_scratch, rotate,
                             store,        attend,  attend_scratch, nullptr,   table_row, rms_norm, silu_mul, 1, few_high};

}  // namespace

const Kernels* kernels_scalar() { return &kScalar; }

void finish_portable(const Epilogue& end, const float* block, int row0, int rows, int pair) {
  const int first = pair * kStrip;
  for (int r = 0; r < rows; ++r) {
    const float* from = block + r * kStrip;
    const size_t place = end.row_of(row0 + r);
    float values[kStrip];
    for (int n = 0; n < kStrip; ++n) values[n] = from[n] + (end.bias ? end.bias[first + n] : 0.0f);
    float* out = end.out + place * end.out_stride;
    if (end.gated) {
      // A strip pair is 16 gates and the 16 ups that belong to them.
      for (int n = 0; n < 16 && first / 2 + n < end.n / 2; ++n) out[first / 2 + n] = values[n] / (1.0f + std::exp(-values[n])) * values[16 + n];
      continue;
    }
    float greatest = -INFINITY;
    bool wrong = false;
    for (int n = 0; n < kStrip && first + n < end.n; ++n) {
      const float sum = values[n] + (end.add ? end.add[place * end.add_stride + first + n] : 0.0f);
      out[first + n] = sum;
      greatest = std::max(greatest, sum);
      wrong |= !std::isfinite(sum);
    }
    if (end.block_max) end.block_max[place * end.max_stride + pair] = wrong ? NAN : greatest;
  }
}

}  // namespace kh
