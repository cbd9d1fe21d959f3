// What the library offers besides a step: choosing an instruction set, caches, models, measurements.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <string_view>

#include "model.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace kh {

namespace {

#if defined(__x86_64__)

struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Leaf leaf(unsigned number, unsigned part = 0) {
  Leaf l;
  __get_cpuid_count(number, part, &l.a, &l.b, &l.c, &l.d);
  return l;
}

uint64_t enabled_states() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

bool has(unsigned bits, int bit) { return bits >> bit & 1; }

// Tiles need the processor, the system's state saving, and a permission that Linux gives once a process asks.
bool may_use_tiles() {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
  return false;
#endif
}

struct Processor {
  bool avx2 = false, avxvnni = false, avx512 = false, amx = false;
  Processor() {
    const Leaf one = leaf(1), seven = leaf(7), more = leaf(7, 1);
    if (!has(one.c, 27)) return;  // xgetbv
    const uint64_t states = enabled_states();
    const bool ymm = (states & 6) == 6, zmm = (states & 0xe6) == 0xe6, tiles = (states >> 17 & 3) == 3;
    avx2 = ymm && has(seven.b, 5) && has(one.c, 12) && has(one.c, 29);
    avxvnni = avx2 && has(more.a, 4);
    avx512 = avx2 && zmm && has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 30) && has(seven.b, 31) && has(seven.c, 1) && has(seven.c, 11) && has(more.a, 5);
    amx = avx512 && tiles && has(seven.d, 22) && has(seven.d, 24) && has(seven.d, 25) && may_use_tiles();
  }
};

const Kernels* available(std::string_view name) {
  static const Processor processor;
  if (name == "amx" && processor.amx) return kernels_amx();
  if (name == "avx512" && processor.avx512) return kernels_avx512();
  if (name == "avxvnni" && processor.avxvnni) return kernels_avxvnni();
  if (name == "avx2" && processor.avx2) return kernels_avx2();
  if (name == "scalar") return kernels_scalar();
  return nullptr;
}

#else

// Every 64-bit ARM processor has NEON; the system says whether this one has the dot products.
bool has_dot_products() {
#if defined(__aarch64__) && defined(__linux__)
  return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#elif defined(__aarch64__) && defined(__APPLE__)
  int32_t found = 0;
  size_t size = sizeof(found);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found;
#else
  return false;
#endif
}

const Kernels* available(std::string_view name) {
  if (name == "dotprod" && has_dot_products()) return kernels_dotprod();
  if (name == "neon") return kernels_neon();
  if (name == "scalar") return kernels_scalar();
  return nullptr;
}

#endif

// The best first.
constexpr const char* kNames[] = {"amx", "avx512", "avxvnni", "avx2", "dotprod", "neon", "scalar"};

const Kernels* best() {
  for (const char* name : kNames)
    if (const Kernels* kernels = available(name)) return kernels;
  return kernels_scalar();
}

// A cache of one layer without its memory.
LayerPlanes planes_of(const kh_layer_cache& layer, int32_t form) {
  return {nullptr, nullptr, layer.heads, layer.key_size, layer.value_size, form == KH_CACHE_INT8, form == KH_CACHE_FLOAT32};
}

// Threads that load models read it while another one may choose.
std::atomic<const Kernels*>& choice() {
  static std::atomic<const Kernels*> kernels{best()};
  return kernels;
}

}  // namespace

const Kernels* chosen() { return choice(); }

// The unit of this number, those of the best instruction set first.
Rate rate_of(int32_t index) {
  for (const char* name : kNames)
    if (const Kernels* kernels = available(name))
      for (const Rate& rate : kernels->rates)
        if (rate.name && index-- == 0) return rate;
  return {};
}

}  // namespace kh

extern "C" {

int32_t kh_abi(void) { return KH_ABI; }

const char* kh_isa(void) { return kh::chosen()->name; }

int32_t kh_choose(const char* wanted) {
  if (!wanted || !*wanted) {
    kh::choice() = kh::best();
    return KH_OK;
  }
  const kh::Kernels* kernels = kh::available(wanted);
  if (!kernels) return KH_NO_KERNEL;
  kh::choice() = kernels;
  return KH_OK;
}

int32_t kh_has(const char* name) { return kh::available(name) != nullptr; }

size_t kh_cache_bytes(const kh_layer_cache* layers, int32_t num_layers, int32_t num_pages, int32_t form) {
  size_t bytes = 0;
  for (int i = 0; i < num_layers; ++i) {
    const kh::LayerPlanes p = kh::planes_of(layers[i], form);
    bytes += (p.key_page() + p.value_page()) * num_pages;
  }
  return bytes;
}

kh_cache* kh_cache_new(const kh_layer_cache* layers, int32_t num_layers, int32_t num_pages, int32_t form) try {
  auto cache = std::make_unique<kh_cache>();
  cache->num_pages = num_pages;
  cache->plain = form == KH_CACHE_FLOAT32;
  for (int i = 0; i < num_layers; ++i) {
    kh::LayerPlanes p = kh::planes_of(layers[i], form);
    cache->memory.emplace_back(p.key_page() * num_pages, false);
    p.keys = cache->memory.back().data();
    cache->memory.emplace_back(p.value_page() * num_pages, false);
    p.values = cache->memory.back().data();
    cache->layers.push_back(p);
  }
  return cache.release();
} catch (const std::bad_alloc&) {
  return nullptr;
}

void kh_cache_free(kh_cache* cache) { delete cache; }

kh_model* kh_model_new(const kh_program* program, int32_t threads) try {
  // A split matrix was packed for another instruction set, if this one would take it for a whole one.
  for (int i = 0; i < program->num_weights; ++i)
    if (program->weights[i].split && !kh::chosen()->few_high) return nullptr;
  return new kh_model(*program, threads);
} catch (const std::bad_alloc&) {
  return nullptr;
}

void kh_model_free(kh_model* model) { delete model; }

int32_t kh_multiply(int32_t index, int64_t rounds, const char** name, int64_t* operations) {
  const kh::Rate rate = kh::rate_of(index);
  if (!rate.name) return KH_BAD_ARGUMENT;
  *name = rate.name;
  *operations = rate.multiply(rounds);
  return KH_OK;
}

void kh_stream(kh_model* model, int32_t on) { model->streams = on != 0; }

int32_t kh_profile(kh_model* model, double* seconds, int32_t num) {
  for (int i = 0; i < num && i < static_cast<int>(model->seconds.size()); ++i) seconds[i] = model->seconds[i];
  std::fill(model->seconds.begin(), model->seconds.end(), 0.0);
  return KH_OK;
}

const float* kh_slot(kh_model* model, int32_t slot, int32_t* stride) {
  if (!model || !stride || slot < 0 || slot >= static_cast<int32_t>(model->slots.size())) return nullptr;
  *stride = model->slot_stride[slot];
  return model->slots[slot];
}

// All bits set is a NaN in float32 and bfloat16.
void kh_poison(kh_model* model) {
  std::memset(model->arena.data(), 0xff, model->poisonable);
  for (const auto& scratch : model->scratch) std::memset(scratch.data, 0xff, scratch.bytes);
}

}  // extern "C"
