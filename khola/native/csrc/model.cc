#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <utility>

#include "precise.h"
#include "states.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr size_t kHuge = size_t{2} << 20;
constexpr size_t kTurnBlock = 256;  // positions whose cosines and sines are worked out at once

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

}  // namespace

Memory::Memory(size_t bytes, bool huge) : bytes_(round_up(std::max<size_t>(bytes, 64), 64)) {
#if defined(__linux__)
  if (bytes_ >= kHuge) {
    // Zero pages that become real when they are touched: a long cache costs nothing before it is used.
    bytes_ = round_up(bytes_, kHuge);
    void* block = mmap(nullptr, bytes_ + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    block_ = block;
    data_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(block), kHuge));
    // Best effort: fewer address translations while weights stream past.
    madvise(data_, bytes_, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return;
  }
#endif
  block_ = data_ = static_cast<uint8_t*>(std::aligned_alloc(64, bytes_));
  if (!data_) throw std::bad_alloc();
  std::memset(data_, 0, bytes_);
}

Memory::~Memory() {
#if defined(__linux__)
  if (bytes_ >= kHuge && block_) {
    munmap(block_, bytes_ + kHuge);
    return;
  }
#endif
  std::free(block_);
}

Memory::Memory(Memory&& other) noexcept
    : block_(std::exchange(other.block_, nullptr)), data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(block_, other.block_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

namespace {

// Hands out pieces of one block; run twice, first to count, then to place.
class Arena {
 public:
  explicit Arena(uint8_t* base) : base_(base) {}
  template <typename T>
  T* take(size_t count) {
    uint8_t* here = base_ ? base_ + used_ : nullptr;
    used_ += round_up(count * sizeof(T), 64);
    return reinterpret_cast<T*>(here);
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

kh::Operand operand_of(const kh_model& model, Arena& arena, size_t rows, size_t k_pad, bool tiles) {
  kh::Operand operand;
  if (model.kernels.precise) {
    operand.plain = arena.take<float>(rows * k_pad);
    return operand;
  }
  operand.q = arena.take<int8_t>(rows * k_pad);
  operand.scale = arena.take<float>(rows * k_pad / kh::kGroup);
  operand.sum = arena.take<int32_t>(rows * k_pad / kh::kGroup * 3);
  operand.rows16 = arena.take<uint16_t>(rows * k_pad);
  if (tiles) operand.tiles = arena.take<uint16_t>(rows * k_pad);
  return operand;
}

void place(kh_model& model, Arena& arena, int k_pad) {
  const size_t rows = round_up(std::max(model.max_rows, model.max_wanted), 16);
  model.slots.clear();
  for (size_t slot = 0; slot < model.slot_width.size(); ++slot) {
    const size_t height = model.slot_wanted[slot] ? std::max(1, model.max_wanted) : rows;
    model.slots.push_back(arena.take<float>(height * model.slot_stride[slot]));
  }
  model.operand = operand_of(model, arena, rows, k_pad, true);
  size_t handed = 0;
  for (size_t i = 0; i < model.ops.size(); ++i)
    if (model.hands_on[i]) handed = std::max(handed, rows * model.slot_width[model.ops[i].out]);
  model.handed = arena.take<uint16_t>(handed);
  model.own.clear();
  model.parts.clear();
  for (int thread = 0; thread < model.pool.threads(); ++thread) {
    model.own.push_back(operand_of(model, arena, 1, k_pad, false));
    model.parts.push_back(arena.take<float>(model.part_floats * round_up(model.max_context, kh::kKeyBlock) / kh::kKeyBlock));
  }
  int head_pad = 0;
  for (const kh_op& op : model.ops)
    if (op.op == KH_HEAD_LINEAR) head_pad = std::max(head_pad, model.weights[op.w0].k_pad);
  model.of_head.clear();
  for (int thread = 0; thread < model.pool.threads() && head_pad; ++thread)
    model.of_head.push_back(operand_of(model, arena, rows, head_pad, true));
  ExpertRoom& room = model.experts;
  room.gathered.clear();
  if (room.places) {
    room.operand = operand_of(model, arena, room.places, k_pad, true);
    room.inner = arena.take<float>(static_cast<size_t>(room.places) * room.inner_stride);
    room.out = arena.take<float>(static_cast<size_t>(room.places) * room.out_stride);
    for (int thread = 0; thread < model.pool.threads(); ++thread) room.gathered.push_back(arena.take<float>(size_t{16} * room.out_stride));
  }
  model.finder.operand = operand_of(model, arena, 1, k_pad, false);
  model.finder.normed = arena.take<float>(k_pad);
  model.finder.energy = arena.take<float>(k_pad / kh::kGroup);
  model.poisonable = arena.used();
  model.turns.clear();
  for (const auto& rope : model.ropes) model.turns.push_back(arena.take<float>(size_t{2} * rope.half * model.max_context));
}

// How large column `column` of a slot is expected to be before operation `at`, as far as weights tell: the bias of a product, or what a norm
// multiplies with; 0 where they tell nothing.
float expected_size(const kh_model& model, int at, int slot, int column) {
  while (at-- > 0) {
    const kh_op& op = model.ops[at];
    if (op.out != slot) continue;
    if (op.op == KH_SLICE) return expected_size(model, at, op.in0, column + op.arg[0]);
    if (op.op == KH_LINEAR) return model.weights[op.w0].bias ? std::fabs(model.weights[op.w0].bias[column]) : 0.0f;
    if (op.op != KH_RMS_NORM) return 0.0f;
    return std::fabs(model.vectors[op.w0].weight[op.arg[0] ? column % op.arg[0] : column] + op.f[1]);
  }
  return 0.0f;
}

// Where the keys of a layer come from, before they are turned.
struct KeySource {
  int at = 0, slot = -1, column = 0;
  int half = 0;  // of the turned inputs, which are pairs (i, i + half)
};

KeySource source_of(const kh_model& model, int layer) {
  KeySource found;
  for (int at = 0; at < static_cast<int>(model.ops.size()); ++at) {
    const kh_op& op = model.ops[at];
    if (op.op == KH_ROTATE_STORE && op.arg[0] == layer) return {at, op.in0, op.arg[1] * op.arg[2], model.ropes[op.w1].half};
    if (op.op == KH_ATTEND && op.arg[0] == layer) found = {at, op.in1, 0, 0};
  }
  for (int at = found.at - 1; at >= 0; --at) {
    const kh_op& op = model.ops[at];
    if (op.out != found.slot) continue;
    if (op.op == KH_ROTATE) found = {at, op.in0, 0, model.ropes[op.arg[0]].half};
    break;
  }
  return found;
}

// Keys may have a few inputs that are a hundred times as large as the rest, from a bias: in steps of the largest, codes would say nothing of
// the others. So large ones get steps of their own. The two inputs of a pair turn into each other, and share one.
std::vector<float> key_steps_of(const kh_model& model, int layer) {
  constexpr float kUsual = 8.0f;  // about as large as keys without a bias become: smaller ones need no step of their own
  const kh_layer_cache& cache = model.layers[layer];
  const KeySource source = source_of(model, layer);
  const size_t padded = round_up(cache.key_size, 32);
  std::vector<float> steps(padded * cache.heads, 1.0f);
  bool any = false;
  for (int head = 0; head < cache.heads; ++head)
    for (int i = 0; i < cache.key_size; ++i) {
      const auto size = [&](int j) { return expected_size(model, source.at, source.slot, source.column + head * cache.key_size + j); };
      const int j = i % std::max(source.half, 1);
      const float expected = i < 2 * source.half ? std::hypot(size(j), size(j + source.half)) : size(i);
      if (!(expected > kUsual) || !std::isfinite(expected)) continue;
      steps[head * padded + i] = std::exp2(std::rint(std::log2(expected / kUsual)));
      any = true;
    }
  return any ? steps : std::vector<float>();
}

}  // namespace

kh_model::kh_model(const kh_program& program, int threads)
    : ops(program.ops, program.ops + program.num_ops),
      slot_width(program.slot_width, program.slot_width + program.num_slots),
      weights(program.weights, program.weights + program.num_weights),
      vectors(program.vectors, program.vectors + program.num_vectors),
      ropes(program.ropes, program.ropes + program.num_ropes),
      layers(program.layers, program.layers + program.num_layers),
      max_rows(program.max_rows),
      max_wanted(program.max_wanted),
      max_context(program.max_context),
      kernels(program.precise ? kh::precise_kernels(*kh::chosen()) : *kh::chosen()),
      scans(kh::scans_for(kernels.name)),
      seconds(64, 0.0),
      pool(threads),
      deal(pool.threads()) {
  int k_pad = kh::kDeep;
  for (const auto& weight : weights) k_pad = std::max(k_pad, weight.k_pad);
  for (int slot = 0; slot < program.num_slots; ++slot) {
    slot_wanted.push_back(static_cast<uint8_t>(program.slot_rows[slot]));
    slot_stride.push_back(static_cast<int>(round_up(slot_width[slot], 16)));
  }
  zeros.assign(*std::max_element(slot_width.begin(), slot_width.end()), 0.0f);
  ones.assign(zeros.size(), 1.0f);
  packed_kinds.order.resize(max_rows);
  wanted_kinds.order.resize(max_wanted);
  size_t need = std::max(kernels.many_scratch(k_pad, max_rows), sizeof(float) * 2 * k_pad);
  for (const auto& op : ops)
    if (op.op == KH_ATTEND || op.op == KH_ATTEND_STORED || op.op == KH_ATTEND_LATENT) {
      const auto& layer = layers[op.arg[0]];
      const int value_size = op.op == KH_ATTEND_LATENT ? slot_width[op.in1] : layer.value_size;
      need = std::max(need, kernels.attend_scratch(slot_width[op.in0] / layer.key_size / layer.heads, layer.key_size, value_size));
      if (kernels.part_floats) part_floats = std::max(part_floats, kernels.part_floats(value_size));
      if (op.op == KH_ATTEND_LATENT) need = std::max(need, sizeof(float) * layer.key_size);
      windowed |= op.arg[2] > 0;
    }
  for (size_t layer = 0; layer < layers.size(); ++layer) key_steps.push_back(key_steps_of(*this, static_cast<int>(layer)));
  for (size_t i = 0; i < ops.size(); ++i) hands_on.push_back(can_hand_on(i));
  for (const auto& op : ops) {
    if (op.op == KH_EXPERTS) experts.measure(op, weights[op.w0], static_cast<int>(round_up(std::max(max_rows, max_wanted), 16)));
    if (op.op == KH_ROUTE) need = std::max(need, size_t{16} * slot_width[op.in0]);
    need = std::max(need, kh::state_scratch(*this, op));
  }
  Arena counted(nullptr);
  place(*this, counted, k_pad);
  arena = Memory(counted.used());
  Arena placed(arena.data());
  place(*this, placed, k_pad);
  for (size_t i = 0; i < ropes.size(); ++i) {
    frequencies.emplace_back(ropes[i].frequencies, ropes[i].frequencies + ropes[i].half);
    ropes[i].frequencies = frequencies.back().data();
  }
  for (const auto& op : ops)
    if (op.op == KH_LINEAR && op.flags & KH_HEAD) finder.head = &op;
  if (finder.head) {
    const size_t blocks = weights[finder.head->w0].n_pad / 32;
    finder.bounds.resize(blocks), finder.plain.resize(blocks);
    finder.tops.resize(blocks / kh::kTop + 1);
  }
  for (int thread = 0; thread < pool.threads(); ++thread) {
    scratch_memory.emplace_back(need);
    scratch.push_back({scratch_memory.back().data(), need});
  }
}

// The next operation must be the only one that reads them, as they are, and have no inputs but these.
bool kh_model::can_hand_on(size_t i) const {
  if (!kernels.gates_into_tiles || i + 1 >= ops.size()) return false;
  const kh_op &here = ops[i], &next = ops[i + 1];
  if (here.op != KH_LINEAR || !(here.flags & KH_GATED) || next.op != KH_LINEAR || next.in0 != here.out || next.flags & KH_NORMED) return false;
  if (weights[next.w0].k_pad != weights[next.w0].k || (next.flags & KH_ADD_IN1 && next.in1 == here.out)) return false;
  for (size_t later = i + 2; later < ops.size(); ++later) {
    if (ops[later].in0 == here.out || ops[later].in1 == here.out || ops[later].in2 == here.out) return false;
    if (ops[later].out == here.out) break;
  }
  return true;
}

void ExpertRoom::measure(const kh_op& op, const kh_weight& gate_up, int rows) {
  const size_t pairs = static_cast<size_t>(rows) * op.arg[1], groups = size_t{2} * op.arg[0];
  const int needed = static_cast<int>(round_up(pairs + 15 * std::min(pairs, groups), 16));
  places = std::max(places, needed);
  inner_stride = std::max(inner_stride, static_cast<int>(round_up(gate_up.n / op.arg[0] / 2, 16)));
  out_stride = std::max(out_stride, static_cast<int>(round_up(gate_up.k, 16)));
  counts.resize(std::max(counts.size(), groups));
  parts.reserve(std::max(parts.capacity(), groups));
  row_of.resize(places);
  same.resize(places);
  std::iota(same.begin(), same.end(), 0);
  place_of.resize(std::max(place_of.size(), pairs));
}

void kh::pack_runs(const float* x, int stride, int k, const Norm& norm, Operand& operand, const int32_t* from, Share mine, Share inputs,
                   ToForm to_form) {
  for (int row = mine.first, next; row < mine.last; row = next) {
    next = row + 1;
    while (next < mine.last && from[next] == from[next - 1] + 1) ++next;
    to_form(x + static_cast<ptrdiff_t>(from[row] - row) * stride, stride, k, norm, operand, {row, next, inputs.first, inputs.last});
  }
}

void RowKinds::sort(const uint8_t* is_few, int rows) {
  few = is_few ? static_cast<int>(std::count_if(is_few, is_few + rows, [](uint8_t one) { return one != 0; })) : 0;
  many = rows - few;
  int next_few = 0, next_many = few;
  for (int r = 0; r < rows; ++r) order[is_few && is_few[r] ? next_few++ : next_many++] = r;
}

void kh_model::turn_to(int position) {
  if (position < turned) return;
  const int end = std::min(max_context, static_cast<int>(round_up(static_cast<size_t>(position) + 1, kTurnBlock)));
  for (size_t i = 0; i < ropes.size(); ++i)
    for (int at = turned; at < end; ++at) {
      float* row = turns[i] + static_cast<size_t>(at) * 2 * ropes[i].half;
      for (int j = 0; j < ropes[i].half; ++j) {
        // The product in float32, as in the code the models were trained with; the cosine of it exactly.
        const float angle = static_cast<float>(at) * frequencies[i][j];
        row[j] = static_cast<float>(std::cos(static_cast<double>(angle)) * ropes[i].factor);
        row[ropes[i].half + j] = static_cast<float>(std::sin(static_cast<double>(angle)) * ropes[i].factor);
      }
    }
  turned = end;
}
