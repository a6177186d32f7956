#include "memory.hpp"

#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace crfasrnn {
namespace {

constexpr std::size_t alignment = 64;
constexpr std::size_t huge_page = std::size_t{2} << 20;
constexpr std::size_t smallest_cached = std::size_t{1} << 16;
// Enough for all arrays of a 1024 x 1024 image with 21 labels.
constexpr std::size_t most_cached = std::size_t{512} << 20;

// How much more is kept on loan: the system may take it back at any moment, without asking, and does so
// before it runs short of memory. Until then it is there for the next image of the same size.
std::size_t most_lent() {
#if defined(__linux__) && defined(MADV_FREE)
  static const std::size_t quarter = [] {
    const long n_pages = sysconf(_SC_PHYS_PAGES);
    const long page = sysconf(_SC_PAGESIZE);
    return n_pages > 0 && page > 0 ? static_cast<std::size_t>(n_pages) / 4 * static_cast<std::size_t>(page) : 0;
  }();
  return quarter;
#else
  return 0;
#endif
}

// Tell the system that it may take these pages; what is written to them later keeps them.
bool lend(void* block, std::size_t capacity) noexcept {
#if defined(__linux__) && defined(MADV_FREE)
  return capacity >= huge_page && madvise(block, capacity, MADV_FREE) == 0;
#else
  static_cast<void>(block);
  static_cast<void>(capacity);
  return false;
#endif
}

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

struct Block {
  void* data;
  bool is_lent;
};

struct Cache {
  std::mutex mutex;
  std::multimap<std::size_t, Block> blocks;
  std::size_t n_bytes = 0;  // kept
  std::size_t n_lent = 0;

  std::size_t& count(bool is_lent) { return is_lent ? n_lent : n_bytes; }

  // Give lent blocks back until the system has got about so much: memory of another size is wanted, and both
  // together would be more than this process ever needed.
  void recede(std::size_t wanted) noexcept {
    std::size_t given = 0;
    for (auto at = blocks.upper_bound(2 * wanted); at != blocks.begin() && n_lent != 0 && given < wanted;) {
      --at;
      if (!at->second.is_lent) continue;
      given += at->first;
      n_lent -= at->first;
      deallocate(at->second.data, at->first);
      at = blocks.erase(at);
    }
  }
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
      const Block block = found->second;
      c.count(block.is_lent) -= capacity;
      c.blocks.erase(found);
      return block.data;
    }
    c.recede(capacity);
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
    const bool is_lent = c.n_bytes + capacity > most_cached;
    if (!is_lent || (c.n_lent + capacity <= most_lent() && lend(block, capacity))) {
      try {
        c.blocks.emplace(capacity, Block{block, is_lent});
        c.count(is_lent) += capacity;
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
  const std::size_t released = c.n_bytes + c.n_lent;
  for (const auto& [capacity, block] : c.blocks) deallocate(block.data, capacity);
  c.blocks.clear();
  c.n_bytes = c.n_lent = 0;
  return released;
}

}  // namespace crfasrnn
