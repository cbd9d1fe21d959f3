// A program made ready to run: its arrays, one arena for all slots and operands, and the threads that execute it.
#pragma once

#include <memory>
#include <vector>

#include "deal.h"
#include "kernels.h"
#include "pool.h"
#include "scan.h"

// Zeroed memory that is freed with the object and aligned for the widest vector, in huge pages where they are wanted and the system gives
// them. Small pages become real one by one: right for what is large and seldom filled.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes, bool huge = true);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* block_ = nullptr;  // as the system gave it
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

namespace kh {

constexpr int kMostTaps = 64;  // rows that a convolution sees

// What one layer keeps of every sequence.
struct StatePlanes {
  float* states = nullptr;  // [slots][heads][key_size][value_size]
  float* tails = nullptr;   // [slots][taps − 1][width]
  kh_state_cache sizes{};

  static size_t state_floats(const kh_state_cache& s) { return static_cast<size_t>(s.heads) * s.key_size * s.value_size; }
  static size_t tail_floats(const kh_state_cache& s) { return static_cast<size_t>(s.taps - 1) * s.width; }
  float* state(int slot) const { return states + slot * state_floats(sizes); }
  float* tail(int slot) const { return tails + slot * tail_floats(sizes); }
};

}  // namespace kh

struct kh_cache {
  std::vector<Memory> memory;
  std::vector<kh::LayerPlanes> layers;
  std::vector<kh::StatePlanes> states;  // of each layer, or none at all
  int num_pages = 0, num_states = 0;
  bool plain = false;  // keys and values are float32
};

// What finding the best logits of a row works in; see best.cc.
struct Finder {
  const kh_op* head = nullptr;      // the product that gives the logits; nullptr: the program has none
  kh::Operand operand;              // one row's form
  float* normed = nullptr;          // one row
  float* energy = nullptr;          // of every 32 inputs
  std::vector<float> bounds, tops;  // no logit of 32 is greater, nor of all in kTop times 32
  bool rough = false;               // the step that runs reads the head half
  int steps = 0;                    // that could have been rough
  float refined = 0;                // share of the head that one row of a rough step reads again, lately
  std::vector<uint32_t> plain;      // bits of logits that count and are not changed
};

// The rows of a step by the form in which they are multiplied, each kind in the order of the step.
struct RowKinds {
  std::vector<int32_t> order;  // rows whose inputs are int8 first, then those in bfloat16
  int few = 0, many = 0;

  void sort(const uint8_t* is_few, int rows);
  const int32_t* few_rows() const { return order.data(); }
  const int32_t* many_rows() const { return order.data() + few; }
};

namespace kh {

// Some inputs of the rows [mine.first, mine.last) of an operand, which are rows `from[…]` of x, a run of neighbours at a time.
void pack_runs(const float* x, int stride, int k, const Norm& norm, Operand& operand, const int32_t* from, Share mine, Share inputs, ToForm to_form);

}  // namespace kh

// The rows of a step that one expert was chosen for, of one kind: neighbouring places from a multiple of sixteen on.
struct ExpertRows {
  int expert;
  bool many;
  int first, count;
};

// What a mixture of experts works in; see experts.h. A place is a pair of a row and one of its experts.
struct ExpertRoom {
  std::vector<int32_t> counts;      // by expert and kind
  std::vector<int32_t> row_of;      // of each place
  std::vector<int32_t> same;        // each place's own number: products want to be told where their rows go
  std::vector<int32_t> place_of;    // [rows][chosen]
  std::vector<ExpertRows> parts;    // of the mixture that runs
  int blocks = 0;                   // of sixteen places
  int places = 0;                   // that there is memory for
  int inner_stride = 0, out_stride = 0;
  kh::Operand operand;              // of all places
  float* inner = nullptr;           // [places][inner_stride]: what the gates let through
  float* out = nullptr;             // [places][out_stride]
  std::vector<float*> gathered;     // one a thread: sixteen rows

  void measure(const kh_op& op, const kh_weight& gate_up, int rows);
};

struct kh_model {
  kh_model(const kh_program& program, int threads);

  // Whether operation `i` hands its gated rows on.
  bool can_hand_on(size_t i) const;

  // Have cosines and sines of all positions up to this one.
  void turn_to(int position);

  std::vector<kh_op> ops;
  std::vector<int> slot_width, slot_stride;
  std::vector<uint8_t> slot_wanted;
  std::vector<kh_weight> weights;
  std::vector<kh_vector> vectors;
  std::vector<kh_rope> ropes;
  std::vector<std::vector<float>> frequencies;
  std::vector<kh_layer_cache> layers;
  int max_rows, max_wanted, max_context;
  const kh::Kernels kernels;        // as chosen when the model was made: memory is measured out for them
  const kh::Scans& scans;           // that go with them
  std::vector<float> zeros, ones;   // as wide as the widest slot
  std::vector<std::vector<float>> key_steps;  // of each layer; see LayerPlanes. Empty: all 1
  bool streams = false;             // weights may have to be read from their file: see ahead.h
  bool windowed = false;            // some layer looks back a limited way, so that early pages may be gone

  Memory arena;                     // slots, operands, rope tables, parts of long attentions
  size_t poisonable = 0;            // bytes at the beginning of the arena that every step writes before it reads them
  std::vector<float*> slots;
  RowKinds packed_kinds, wanted_kinds;  // of the step that runs
  kh::Operand operand;
  std::vector<uint8_t> hands_on;    // of each operation: its gated rows go into the next one's operand as they come
  uint16_t* handed = nullptr;       // tiles of that operand
  std::vector<kh::Operand> own;     // one row's form, one a thread: made by each for itself, because waiting for one takes as long
  std::vector<kh::Operand> of_head; // all rows' form, of one head's inputs, one a thread
  size_t part_floats = 0;           // of one part of an attention
  std::vector<float*> parts;        // one a thread: parts of the attention that begins in its share of the work
  std::vector<float*> turns;        // per rope: [max_context][2][half] cosines then sines
  int turned = 0;                   // positions that are worked out
  std::vector<Memory> scratch_memory;
  std::vector<kh::Scratch> scratch; // one a thread
  Finder finder;
  ExpertRoom experts;
  std::vector<double> seconds;      // by opcode
  kh::Pool pool;
  kh::Deal deal;                    // of the product that runs: its strip pairs
};
