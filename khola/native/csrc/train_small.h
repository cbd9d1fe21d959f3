// Operations on rows, and the table of all kernels.
#pragma once

#include "train_attend.h"
#include "train_product.h"

namespace kh {
namespace {

void norm(const kh_rows& t, int first, int last) {
  for (int64_t row = first; row < last; ++row) {
    const uint16_t* x = t.x + row * t.columns;
    Lane squares{}, v, w;
    for (int c = 0; c < t.columns; c += kLane) {
      widen(x + c, lesser(kLane, t.columns - c), v);
      squares += v * v;
    }
    const float factor = 1.0f / std::sqrt(total(squares) / static_cast<float>(t.columns) + t.epsilon);
    t.factors[row] = factor;
    for (int c = 0; c < t.columns; c += kLane) {
      const int count = lesser(kLane, t.columns - c);
      widen(x + c, count, v);
      floats(t.weight + c, count, w);
      v = v * factor * (w + t.offset);
      narrow(v, count, t.out + row * t.columns + c);
    }
  }
}

void norm_back(const kh_rows& t, int first, int last, float* share) {
  std::memset(share, 0, t.columns * sizeof(float));
  for (int64_t row = first; row < last; ++row) {
    const int64_t at = row * t.columns;
    const float factor = t.factors[row];
    Lane products{}, x, g, w, sum;
    for (int c = 0; c < t.columns; c += kLane) {
      const int count = lesser(kLane, t.columns - c);
      widen(t.x + at + c, count, x);
      widen(t.y + at + c, count, g);
      floats(t.weight + c, count, w);
      floats(share + c, count, sum);
      x *= factor;
      sum += g * x;
      floats(sum, count, share + c);
      products += g * (w + t.offset) * x;
    }
    const float mean = total(products) / static_cast<float>(t.columns);
    for (int c = 0; c < t.columns; c += kLane) {
      const int count = lesser(kLane, t.columns - c);
      widen(t.x + at + c, count, x);
      widen(t.y + at + c, count, g);
      floats(t.weight + c, count, w);
      x = (g * (w + t.offset) - x * (factor * mean)) * factor;
      narrow(x, count, t.out + at + c);
    }
  }
}

// 1 / (1 + exp(−x))
[[gnu::always_inline]] inline void sigmoid(const Lane& x, Lane& out) {
  out = x * -kLog2E;
  power(out);
  out = 1.0f / (1.0f + out);
}

void gate(const kh_rows& t, int first, int last) {
  const int64_t end = static_cast<int64_t>(last) * t.columns;
  for (int64_t at = static_cast<int64_t>(first) * t.columns; at < end; at += kLane) {
    const int count = end - at < kLane ? static_cast<int>(end - at) : kLane;
    Lane x, y, s;
    widen(t.x + at, count, x);
    widen(t.y + at, count, y);
    sigmoid(x, s);
    x = x * s * y;
    narrow(x, count, t.out + at);
  }
}

void gate_back(const kh_rows& t, int first, int last) {
  const int64_t end = static_cast<int64_t>(last) * t.columns;
  for (int64_t at = static_cast<int64_t>(first) * t.columns; at < end; at += kLane) {
    const int count = end - at < kLane ? static_cast<int>(end - at) : kLane;
    Lane x, y, z, s, g;
    widen(t.x + at, count, x);
    widen(t.y + at, count, y);
    widen(t.z + at, count, z);
    sigmoid(x, s);
    g = z * y * s * (1.0f + x * (1.0f - s));
    narrow(g, count, t.out + at);
    g = z * x * s;
    narrow(g, count, t.out2 + at);
  }
}

void rotate(const kh_rows& t, int first, int last) {
  for (int64_t row = first; row < last; ++row) {
    const uint16_t* x = t.x + row * t.columns;
    uint16_t* out = t.out + row * t.columns;
    const float *cosines = t.cosines + row / t.heads * t.half, *sines = t.sines + row / t.heads * t.half;
    for (int c = 0; c < t.half; c += kLane) {
      const int count = lesser(kLane, t.half - c);
      Lane left, right, cosine, sine, turned;
      widen(x + c, count, left);
      widen(x + t.half + c, count, right);
      floats(cosines + c, count, cosine);
      floats(sines + c, count, sine);
      sine *= t.direction;
      turned = left * cosine - right * sine;
      narrow(turned, count, out + c);
      turned = right * cosine + left * sine;
      narrow(turned, count, out + t.half + c);
    }
    std::memcpy(out + 2 * t.half, x + 2 * t.half, (t.columns - 2 * t.half) * sizeof(uint16_t));
  }
}

constexpr TrainKernels kTraining = {begin,       end,       pack, product,   pack_head, attend,    attend_back,
                                    sum_heads, norm, norm_back, gate,      gate_back, rotate};

}  // namespace
}  // namespace kh
