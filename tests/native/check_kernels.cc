// Every kernel of every instruction set that this processor has, against the plain C++ ones, at odd shapes and in poisoned buffers.
// A program of its own, so that it also runs where no Python does: under an emulator of another processor.
//
//   check_kernels [--fault]    with a fault planted it must fail
//
// Prints the instruction sets that were checked; exits with 1 and says what differs at the first difference.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "precise.h"

namespace {

using kh::Epilogue;
using kh::Kernels;
using kh::LayerPlanes;
using kh::Norm;
using kh::Operand;

constexpr double kFloat32 = 1e-12;   // squared error over squared size: two orders of adding up the same products
constexpr double kBfloat16 = 2e-5;   // inputs that one side rounds and the other does not

constexpr double kWeights = 3e-4;    // weights that one side rounds, and what gates make of them

bool fault = false;
int checks = 0;

// Memory on a 64-byte boundary of exactly this size, so that a sanitizer sees what goes beyond; every bit set is NaN.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count), data_(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {
    std::memset(static_cast<void*>(data_.get()), 0xff, (count * sizeof(T) + 63) / 64 * 64);
  }
  T* data() { return data_.get(); }
  T& operator[](size_t i) { return data_.get()[i]; }
  size_t size() const { return count_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  size_t count_;
  std::unique_ptr<T, Free> data_;
};

std::mt19937 generator(7);

float normal(float size = 1.0f) { return std::normal_distribution<float>(0.0f, size)(generator); }
int below(int end) { return static_cast<int>(generator() % static_cast<unsigned>(end)); }

Buffer<float> numbers(size_t count, float size = 1.0f) {
  Buffer<float> made(count);
  for (size_t i = 0; i < count; ++i) made[i] = kh::from_bfloat(kh::to_bfloat(normal(size)));
  return made;
}

[[noreturn]] void fail(const Kernels& kernels, const std::string& what, double found) {
  std::printf("%s: %s differs: %g\n", kernels.name, what.c_str(), found);
  std::exit(1);
}

// Squared error over squared size, of `rows` rows of `width` numbers.
void near(const Kernels& kernels, const std::string& what, const float* found, const float* wanted, int rows, int width, int stride, double limit) {
  double error = 0, size = 1e-30;
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < width; ++i) {
      const double w = wanted[r * stride + i], difference = found[r * stride + i] - w;
      error += difference * difference, size += w * w;
    }
  if (!(error / size < limit)) fail(kernels, what, error / size);
  ++checks;
}

void same(const Kernels& kernels, const std::string& what, const void* found, const void* wanted, size_t bytes) {
  if (std::memcmp(found, wanted, bytes) != 0) fail(kernels, what, std::nan(""));
  ++checks;
}

// Columns that belong to nobody must be as they were.
void untouched(const Kernels& kernels, const std::string& what, Buffer<float>& out, int rows, int width, int stride) {
  for (int r = 0; r < rows; ++r)
    for (int i = width; i < stride; ++i)
      if (!std::isnan(out[static_cast<size_t>(r) * stride + i])) fail(kernels, what + " writes beyond its columns,", i);
  ++checks;
}

struct Matrix {
  kh_weight weight{};
  Buffer<uint8_t> data{0};
  Buffer<float> bias{0};
  std::string name;
};

// Any codes are a matrix; scales are of a sensible size.
Matrix matrix(int n, int k, int bits, int group, bool has_min) {
  Matrix made;
  kh_weight& w = made.weight;
  w.n = n, w.k = k, w.n_pad = (n + 31) / 32 * 32, w.k_pad = (k + 63) / 64 * 64;
  w.bits = static_cast<uint8_t>(bits), w.group = static_cast<uint8_t>(group), w.has_min = has_min;
  w.zero = static_cast<uint8_t>(has_min || bits == 16 ? 0 : 1 << (bits - 1));
  w.tile_bytes = kh::tile_bytes_of(bits, group, has_min);
  const size_t bytes = static_cast<size_t>(w.n_pad / 16) * (w.k_pad / 64) * w.tile_bytes;
  made.data = Buffer<uint8_t>(bytes);
  std::memset(made.data.data(), 0, bytes);
  w.data = made.data.data();
  for (int row = 0; row < n; ++row)
    for (int at = 0; at < w.k_pad; ++at) {
      uint8_t* tile = const_cast<uint8_t*>(kh::tile_of(w, row, at));
      // The greatest code often enough that sums come near what the narrow ones can hold.
      const int code = bits == 16 ? kh::to_bfloat(normal(0.1f)) : below(3) ? below(1 << bits) : (1 << bits) - 1;
      kh::set_code(tile, bits, row % 16, at % 64, code);
      if (bits == 16 || at % group) continue;
      const int place = at % 64 / group * 16 + row % 16;
      kh::scales_of(tile, w)[place] = kh::to_half((0.5f + below(100) / 100.0f) / static_cast<float>(1 << bits));
      if (has_min) kh::minima_of(tile, w)[place] = kh::to_half(-0.5f - below(100) / 100.0f);
    }
  made.bias = numbers(w.n_pad);
  made.name = std::to_string(bits) + " bits in " + std::to_string(group) + (has_min ? " with minimum" : "");
  return made;
}

// What one product writes: outputs, and the greatest of every 32.
struct Product {
  Buffer<float> out, greatest;
};

enum Ending { kPlain, kAdded, kGated, kMaxima };

Product product(const Kernels& kernels, const Matrix& m, float* x, int x_stride, int rows, Ending ending, const Norm& norm, Buffer<float>& carried,
                bool few) {
  const kh_weight& w = m.weight;
  const size_t padded = (static_cast<size_t>(rows) + 15) / 16 * 16;
  Buffer<int8_t> q(padded * w.k_pad);
  Buffer<float> scale(padded * w.k_pad / kh::kGroup);
  Buffer<int32_t> sum(padded * w.k_pad / kh::kGroup * 3);
  Buffer<uint16_t> rows16(padded * w.k_pad), tiles(padded * w.k_pad);
  Operand operand;
  operand.rows = rows, operand.k_pad = w.k_pad, operand.q = q.data(), operand.scale = scale.data(), operand.sum = sum.data();
  operand.rows16 = rows16.data(), operand.tiles = tiles.data();
  Buffer<float> plain(padded * w.k_pad);
  operand.plain = plain.data();
  // In two parts, as two threads would.
  const int middle = w.k_pad / 128 * 64;
  for (const kh::Part& part : {kh::Part{0, rows, middle, w.k_pad}, kh::Part{0, rows, 0, middle}})
    (few ? (w.bits == 16 ? kernels.to_rows16 : kernels.to_int8) : kernels.to_tiles)(x, x_stride, w.k, norm, operand, part);
  const int blocks = (w.n + 31) / 32, stride = w.n + 9;
  Product made{Buffer<float>(static_cast<size_t>(rows) * stride), Buffer<float>(static_cast<size_t>(rows) * blocks)};
  Epilogue end;
  end.bias = const_cast<Matrix&>(m).bias.data();
  end.out = made.out.data(), end.out_stride = stride, end.n = w.n;
  if (ending == kAdded) end.add = carried.data(), end.add_stride = stride;
  if (ending == kMaxima) end.block_max = made.greatest.data(), end.max_stride = blocks;
  end.gated = ending == kGated;
  const size_t bytes = kernels.many_scratch(w.k_pad, std::max(rows, 16));
  Buffer<uint8_t> memory(bytes);
  kh::Scratch scratch{memory.data(), bytes};
  // In two runs, as two threads would.
  const auto multiply = few ? kernels.few : kernels.many;
  const int pairs = w.n_pad / 32, half = pairs / 2;
  multiply(w, operand, half, pairs, end, scratch);
  multiply(w, operand, 0, half, end, scratch);
  return made;
}

void check_products(const Kernels& kernels, const Kernels& plain, int bits, int group, bool has_min) {
  const int n = 70, k = bits == 16 ? 201 : 224, x_stride = k + 3, stride = n + 9;
  Matrix m = matrix(n, k, bits, group, has_min);
  Buffer<float> weight = numbers(k), carried = numbers(40u * stride);
  for (int rows : {1, 2, 3, 4, 5, 7, 16, 17, 20, 33}) {
    Buffer<float> x = numbers(static_cast<size_t>(rows) * x_stride, 3.0f);
    for (int i = 32; i < 64; ++i) x[i] = 0;  // a group of zeros
    for (Ending ending : {kPlain, kAdded, kGated, kMaxima}) {
      // Norms add up in different orders, so that a code may be rounded the other way: only plain inputs must agree closely.
      const Norm norm = ending == kAdded && rows > 16 ? Norm{weight.data(), 1e-5f, 1.0f} : Norm{};
      // Precise kernels know no few rows; the plain ones round weights, where there are many.
      const bool few = rows <= kh::kFewRows && !kernels.precise, rounds = kernels.precise && bits != 16;
      const double limit = rounds ? kWeights : norm.weight ? kBfloat16 : kFloat32 * 100;
      const std::string what = (kernels.precise ? "precise " : "") + m.name + " x " + std::to_string(rows) + " rows, ending " + std::to_string(ending);
      const Product wanted = product(plain, m, x.data(), x_stride, rows, ending, norm, carried, few);
      const bool spoils = fault && bits == 5;
      if (spoils) kh::scales_of(m.data.data(), m.weight)[3] ^= 0x0400;
      Product found = product(kernels, m, x.data(), x_stride, rows, ending, norm, carried, few);
      if (spoils) kh::scales_of(m.data.data(), m.weight)[3] ^= 0x0400;
      const int width = ending == kGated ? n / 2 : n;
      Product& w = const_cast<Product&>(wanted);
      near(kernels, what, found.out.data(), w.out.data(), rows, width, stride, limit);
      untouched(kernels, what, found.out, rows, width, stride);
      if (ending == kMaxima) near(kernels, what + ", maxima", found.greatest.data(), w.greatest.data(), rows, (n + 31) / 32, (n + 31) / 32, limit);
      // A row alone has the bits that it has in company of its kind.
      if (ending == kPlain && (rows <= 16 || kernels.precise)) {
        Product alone = product(kernels, m, x.data() + static_cast<size_t>(rows - 1) * x_stride, x_stride, 1, ending, norm, carried, few);
        same(kernels, what + ", alone", alone.out.data(), found.out.data() + static_cast<size_t>(rows - 1) * stride, sizeof(float) * n);
      }
    }
  }
  Buffer<float> row(k);
  for (int at : {0, 15, 16, 37, n - 1}) {
    kernels.table_row(m.weight, at, row.data());
    for (int i = 0; i < k; ++i)
      if (row[i] != kh::value_of(m.weight, at, i)) fail(kernels, m.name + ", a row of a table", i);
    ++checks;
  }
}

void check_small(const Kernels& kernels, const Kernels& plain, int n) {
  Buffer<float> x = numbers(n, 3.0f), y = numbers(n), weight = numbers(n), found(n), wanted(n);
  const std::string what = " of " + std::to_string(n);
  const Norm norm{weight.data(), 1e-5f, 1.0f};
  kernels.rms_norm(x.data(), n, norm, found.data());
  plain.rms_norm(x.data(), n, norm, wanted.data());
  near(kernels, "rms_norm" + what, found.data(), wanted.data(), 1, n, n, kFloat32);
  kernels.silu_mul(x.data(), y.data(), n, found.data());
  plain.silu_mul(x.data(), y.data(), n, wanted.data());
  near(kernels, "silu_mul" + what, found.data(), wanted.data(), 1, n, n, kFloat32);
  const int heads = 3, half = n / 2, size = n + 1;
  Buffer<float> cosine = numbers(half + 1), sine = numbers(half + 1), turned = numbers(static_cast<size_t>(heads) * size), also(turned.size());
  std::memcpy(also.data(), turned.data(), sizeof(float) * turned.size());
  kernels.rotate(turned.data(), heads, size, cosine.data(), sine.data(), half);
  plain.rotate(also.data(), heads, size, cosine.data(), sine.data(), half);
  near(kernels, "rotate" + what, turned.data(), also.data(), heads, size, size, kFloat32);
}

// What is no number must not come out as one, and numbers beyond all measure must not trap or spoil the neighbours.
void check_strange(const Kernels& kernels) {
  Matrix m = matrix(40, 64, 8, 32, false);
  Buffer<float> none(1);
  const float strange[] = {std::nanf(""), INFINITY, -INFINITY, 1e-42f, 3e38f, 0.0f};
  for (float value : strange)
    for (int rows : {2, 18}) {
      Buffer<float> x = numbers(static_cast<size_t>(rows) * 64);
      const bool few = rows <= kh::kFewRows && !kernels.precise;
      Product good = product(kernels, m, x.data(), 64, rows, kPlain, Norm{}, none, few);
      for (int i = 0; i < 32; ++i) x[64 + i] = value;
      Product found = product(kernels, m, x.data(), 64, rows, kPlain, Norm{}, none, few);
      same(kernels, "the row before a strange one", found.out.data(), good.out.data(), sizeof(float) * 40);
      for (int i = 0; i < 40; ++i)
        if (std::isfinite(value) ? std::fabs(value) < 1 && !std::isfinite(found.out[49 + i]) : std::isfinite(found.out[49 + i]))
          fail(kernels, "a row with " + std::to_string(value), found.out[49 + i]);
      ++checks;
    }
}

struct Context {
  int heads, group, key_size, value_size, position, rows, window;
  bool coded = false;
};

// The cache of one context: garbage in every place that no token has.
struct Planes {
  LayerPlanes planes;
  Buffer<uint8_t> keys, values;
  std::vector<int32_t> pages;

  Planes(const Kernels& kernels, const Context& c, Buffer<float>& k, Buffer<float>& v) : keys(0), values(0) {
    planes.heads = c.heads, planes.key_size = c.key_size, planes.value_size = c.value_size, planes.coded = c.coded, planes.plain = kernels.precise;
    const int tokens = c.position + c.rows, count = (tokens + KH_PAGE - 1) / KH_PAGE;
    keys = Buffer<uint8_t>(planes.key_page() * (count + 1)), values = Buffer<uint8_t>(planes.value_page() * (count + 1));
    planes.keys = keys.data(), planes.values = values.data();
    // Keys are padded to whole chunks with zeros once, when a cache is made. Codes are numbers whatever they are.
    if (!c.coded) std::memset(keys.data(), 0, keys.size());
    for (int page = 0; page < count; ++page) pages.push_back(count - page);
    for (int t = 0; t < tokens; ++t)
      kernels.store(planes, k.data() + static_cast<size_t>(t) * c.heads * c.key_size, v.data() + static_cast<size_t>(t) * c.heads * c.value_size,
                    pages[t / KH_PAGE], t % KH_PAGE);
  }
};

void run_attention(const Kernels& kernels, const Context& c, Planes& in, Buffer<float>& q, Buffer<float>& out, int head, bool torn) {
  Buffer<uint8_t> memory(kernels.attend_scratch(c.group, c.key_size, c.value_size));
  kh::Scratch scratch{memory.data(), memory.size()};
  kh::AttendTask task;
  task.q = q.data() + static_cast<size_t>(head) * c.group * c.key_size;
  task.out = out.data() + static_cast<size_t>(head) * c.group * c.value_size;
  task.q_stride = c.heads * c.group * c.key_size, task.out_stride = c.heads * c.group * c.value_size;
  task.rows = c.rows, task.group = c.group, task.position = c.position, task.window = c.window;
  task.scale = 1.0f / std::sqrt(static_cast<float>(c.key_size));
  task.pages = in.pages.data(), task.key_head = head;
  const int first = c.window ? std::max(0, c.position - c.window + 1) / kh::kKeyBlock : 0, last = (c.position + c.rows - 1) / kh::kKeyBlock + 1;
  if (!torn) return kernels.attend(in.planes, task, scratch);
  Buffer<float> parts(kernels.part_floats(c.value_size) * (last - first));
  for (int block = last - 1; block >= first; --block) {
    std::memset(memory.data(), 0xff, memory.size());
    task.block0 = block, task.block1 = block + 1, task.parts = parts.data() + kernels.part_floats(c.value_size) * (block - first);
    kernels.attend(in.planes, task, scratch);
  }
  task.block0 = first, task.block1 = last, task.parts = parts.data(), task.joins = true;
  kernels.attend(in.planes, task, scratch);
}

void check_attention(const Kernels& kernels, const Kernels& plain, const Context& c) {
  const size_t tokens = c.position + c.rows, width = static_cast<size_t>(c.heads) * c.group * c.value_size;
  Buffer<float> k = numbers(tokens * c.heads * c.key_size), v = numbers(tokens * c.heads * c.value_size);
  Buffer<float> q = numbers(static_cast<size_t>(c.rows) * c.heads * c.group * c.key_size, 1.5f);
  Planes mine(kernels, c, k, v), theirs(plain, c, k, v);
  const std::string what = "attention of " + std::to_string(c.rows) + " after " + std::to_string(c.position) + ", " + std::to_string(c.heads) + " heads of " +
                           std::to_string(c.key_size) + ", group " + std::to_string(c.group) + ", window " + std::to_string(c.window) + (c.coded ? ", coded" : "");
  if (c.coded && c.key_size % 32 == 0 && c.value_size % 32 == 0) {
    same(kernels, what + ", keys", mine.keys.data(), theirs.keys.data(), mine.keys.size());
    same(kernels, what + ", values", mine.values.data(), theirs.values.data(), mine.values.size());
  }
  Buffer<float> found(c.rows * width), wanted(c.rows * width), torn(c.rows * width);
  for (int head = 0; head < c.heads; ++head) {
    run_attention(kernels, c, mine, q, found, head, false);
    run_attention(plain, c, theirs, q, wanted, head, false);
    if (kernels.part_floats && c.rows * c.group <= 32) run_attention(kernels, c, mine, q, torn, head, true);
  }
  near(kernels, what, found.data(), wanted.data(), c.rows, static_cast<int>(width), static_cast<int>(width), kBfloat16);
  if (kernels.part_floats && c.rows * c.group <= 32) same(kernels, what + ", torn", torn.data(), found.data(), sizeof(float) * c.rows * width);
}

void check(const Kernels& kernels, const Kernels& plain) {
  for (int group : {16, 32, 64})
    for (bool has_min : {false, true}) {
      for (int bits : {4, 8}) check_products(kernels, plain, bits, group, has_min);
      if (group == 64) continue;
      for (int bits : {5, 6}) check_products(kernels, plain, bits, group, has_min);
    }
  check_products(kernels, plain, 16, 32, false);
  for (int n : {1, 7, 8, 63, 200}) check_small(kernels, plain, n);
  check_strange(kernels);
  for (const Context& c : {Context{1, 1, 64, 64, 0, 1, 0}, Context{2, 3, 64, 64, 0, 45, 0}, Context{1, 7, 80, 80, 300, 1, 0}, Context{2, 2, 20, 36, 130, 5, 0},
                           Context{1, 4, 64, 64, 290, 3, 40}, Context{1, 40, 32, 32, 5, 2, 0}, Context{1, 1, 128, 96, 255, 33, 128}})
    for (bool coded : {false, true}) {
      if (coded && kernels.precise) continue;
      Context kept = c;
      kept.coded = coded;
      check_attention(kernels, plain, kept);
    }
}

}  // namespace

int main(int count, char** words) {
  fault = count > 1 && std::string(words[1]) == "--fault";
  const Kernels* plain = kh::kernels_scalar();
  for (const char* name : {"amx", "avx512", "avxvnni", "avx2", "dotprod", "neon", "scalar"}) {
    if (kh_choose(name) != KH_OK) continue;
    checks = 0;
    check(*kh::chosen(), *plain);
    check(kh::precise_kernels(*kh::chosen()), *plain);
    std::printf("%s: %d checks\n", name, checks);
    std::fflush(stdout);
  }
  kh_choose("");
  std::printf("best: %s\n", kh_isa());
}
