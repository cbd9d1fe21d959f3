// Pieces of work that threads take in turns: each from the front of its own share, and when that is empty from the back of another's, so
// that nobody waits for a thread whose core is busy with something else. Who works on a piece never changes what comes out of it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace kh {

struct Share {
  int first, last;
};

// A thread's part of `count` pieces, in blocks of `block`.
inline Share share_of(int count, int block, int thread, int threads) {
  const int64_t blocks = (count + block - 1) / block;
  const int first = static_cast<int>(blocks * thread / threads) * block, last = static_cast<int>(blocks * (thread + 1) / threads) * block;
  return {std::min(first, count), std::min(last, count)};
}

constexpr int kPairsTogether = 16;  // strip pairs that a product of many rows works on at once

// Strip pairs that a thread takes at a time: an eighth of its share, or what a product of many rows works on at once.
inline int pairs_at_a_time(int share, bool many) { return std::max(many ? kPairsTogether : 1, (share + 7) / 8); }

class Deal {
 public:
  explicit Deal(int threads) : threads_(threads), left_(new Left[static_cast<size_t>(threads)]) {}

  // Begin with this thread's share. The others may take from it from now on; by the end of the round, when all have met, nothing is left.
  void begin(int thread, Share mine) { left_[thread].ends.store(joined(mine), std::memory_order_release); }

  // At most `most` neighbouring pieces; false when there are none left anywhere.
  bool take(int thread, int most, Share& taken) {
    for (int i = 0; i < threads_; ++i)
      if (take_from((thread + i) % threads_, i > 0, most, taken)) return true;
    return false;
  }

 private:
  // A line of its own for each.
  struct alignas(64) Left {
    std::atomic<uint64_t> ends{0};
  };

  static uint64_t joined(Share share) { return static_cast<uint64_t>(share.first) << 32 | static_cast<uint32_t>(share.last); }

  bool take_from(int owner, bool from_back, int most, Share& taken) {
    std::atomic<uint64_t>& ends = left_[owner].ends;
    for (uint64_t seen = ends.load(std::memory_order_acquire);;) {
      const Share all{static_cast<int>(seen >> 32), static_cast<int>(seen & 0xffffffff)};
      if (all.first >= all.last) return false;
      const int count = std::min(most, all.last - all.first), middle = from_back ? all.last - count : all.first + count;
      const Share front{all.first, middle}, back{middle, all.last};
      if (ends.compare_exchange_weak(seen, joined(from_back ? front : back), std::memory_order_acq_rel)) {
        taken = from_back ? back : front;
        return true;
      }
    }
  }

  const int threads_;
  const std::unique_ptr<Left[]> left_;
};

}  // namespace kh
