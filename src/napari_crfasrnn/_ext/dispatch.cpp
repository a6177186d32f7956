// Which of the compiled kernel tables this processor can run.
#include <atomic>
#include <cstring>

#include "kernels.hpp"

#if defined(CRFASRNN_X86) && defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif

namespace crfasrnn {

namespace plain {
extern const Kernels table;
}
#if defined(CRFASRNN_X86)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

#if defined(CRFASRNN_X86)
#if defined(_MSC_VER) && !defined(__clang__)
bool has_avx2() {
  int r[4];
  __cpuid(r, 1);
  const bool fma = (r[2] >> 12) & 1;
  const bool os_saves = (r[2] >> 27) & 1;
  if (!fma || !os_saves || (_xgetbv(0) & 0x6) != 0x6) return false;
  __cpuidex(r, 7, 0);
  return (r[1] >> 5) & 1;
}
bool has_avx512() {
  if (!has_avx2() || (_xgetbv(0) & 0xE6) != 0xE6) return false;
  int r[4];
  __cpuidex(r, 7, 0);
  const unsigned needed = (1U << 16) | (1U << 17) | (1U << 30) | (1U << 31);  // F, DQ, BW, VL
  return (static_cast<unsigned>(r[1]) & needed) == needed;
}
#else
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif
#endif

struct Available {
  const Kernels* tables[4] = {};
  const char* names[4] = {};

  Available() {
    int n = 0;
#if defined(CRFASRNN_X86)
    if (has_avx512()) tables[n++] = &avx512::table;
    if (has_avx2()) tables[n++] = &avx2::table;
#endif
    tables[n++] = &plain::table;
    for (int i = 0; i < n; ++i) names[i] = tables[i]->name;
  }
};

const Available& available() {
  static const Available instance;
  return instance;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* table = chosen.load(std::memory_order_relaxed);
  return table != nullptr ? *table : *available().tables[0];
}

const char* const* kernel_names() { return available().names; }

bool use_kernels(const char* name) {
  for (const Kernels* table : available().tables) {
    if (table != nullptr && std::strcmp(table->name, name) == 0) {
      chosen.store(table, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace crfasrnn
