#include "memory.hpp"

#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace crfasrnn {
namespace {

constexpr std::size_t alignment = 64;
constexpr std::size_t huge_page = std::size_t{2} << 20;
constexpr std::size_t smallest_cached = std::size_t{1} << 16;
// Enough for all arrays of a 1024 x 1024 image with 21 labels.
constexpr std::size_t most_cached = std::size_t{512} << 20;

std::size_t rounded(std::size_t n_bytes) {
  if (n_bytes > std::numeric_limits<std::size_t>::max() / 2) throw std::bad_alloc();
  const std::size_t unit = n_bytes >= huge_page ? huge_page : n_bytes >= smallest_cached ? smallest_cached : alignment;
  return (n_bytes + unit - 1) / unit * unit;
}

void* allocate(std::size_t capacity) {
  const std::size_t align = capacity >= huge_page ? huge_page : alignment;
  void* block = ::operator new(capacity, std::align_val_t{align});
#if defined(__linux__)
  // Fewer page faults and fewer misses of the address translation: rows are read in random order.
  if (capacity >= huge_page) madvise(block, capacity, MADV_HUGEPAGE);
#endif
  return block;
}

void deallocate(void* block, std::size_t capacity) noexcept {
  const std::size_t align = capacity >= huge_page ? huge_page : alignment;
  ::operator delete(block, std::align_val_t{align});
}

struct Cache {
  std::mutex mutex;
  std::multimap<std::size_t, void*> blocks;
  std::size_t n_bytes = 0;
};

// Never destroyed: buffers may outlive every static object of this file at exit.
Cache& cache() {
  static Cache* const instance = new Cache;
  return *instance;
}

}  // namespace

void* acquire_block(std::size_t n_bytes, std::size_t& capacity) {
  capacity = rounded(n_bytes);
  if (capacity >= smallest_cached) {
    Cache& c = cache();
    const std::lock_guard lock(c.mutex);
    const auto found = c.blocks.lower_bound(capacity);
    // A much larger block is left for a request of its own size.
    if (found != c.blocks.end() && found->first <= capacity + capacity / 2) {
      capacity = found->first;
      void* block = found->second;
      c.n_bytes -= capacity;
      c.blocks.erase(found);
      return block;
    }
  }
  try {
    return allocate(capacity);
  } catch (const std::bad_alloc&) {
    if (release_cached_memory() == 0) throw;
    return allocate(capacity);
  }
}

void release_block(void* block, std::size_t capacity) noexcept {
  if (capacity >= smallest_cached) {
    Cache& c = cache();
    const std::lock_guard lock(c.mutex);
    if (c.n_bytes + capacity <= most_cached) {
      try {
        c.blocks.emplace(capacity, block);
        c.n_bytes += capacity;
        return;
      } catch (const std::bad_alloc&) {
        // Not worth keeping, then.
      }
    }
  }
  deallocate(block, capacity);
}

std::size_t release_cached_memory() noexcept {
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  const std::size_t released = c.n_bytes;
  for (const auto& [capacity, block] : c.blocks) deallocate(block, capacity);
  c.blocks.clear();
  c.n_bytes = 0;
  return released;
}

}  // namespace crfasrnn
