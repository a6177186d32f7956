// The CUDA backend without CUDA: the same items in the same order, run in host loops.
//
// Slow, and only for tests: it checks on machines without a GPU (or even a CUDA compiler) everything
// about lattice_cuda.cu but the launches and the sort and scan that come with CUDA.
#include <cstring>
#include <numeric>

#include "gpu_filter_driver.hpp"

namespace crfasrnn::gpu {

class HostDevice {
 public:
  explicit HostDevice(const Where&) {}

  // Backwards: items may come in any order, so none may lean on the one before.
  template <class Item>
  void for_each(std::size_t n_rows, int n_packs, const Item& item) {
    for (std::size_t row = n_rows; row-- > 0;) {
      for (int q = 0; q < n_packs; ++q) item(row, q);
    }
  }

  template <class Item>
  void for_each_two(std::size_t n_first, const Item& first, std::size_t n_second, const Item& second, int n_packs) {
    for_each(n_first, n_packs, first);
    for_each(n_second, n_packs, second);
  }

  // Blocks start from scratch memory full of NaN, so that nothing can lean on what is not written, and
  // the threads of every other block come in opposite order.
  template <class Item>
  void blocks(std::size_t n_blocks, int n_x, int n_y, std::size_t n_scratch, const Item& item) {
    for (std::size_t block = 0; block < n_blocks; ++block) {
      std::vector<float> scratch(n_scratch + 4, std::numeric_limits<float>::quiet_NaN());
      void* aligned = scratch.data();
      std::size_t room = scratch.size() * sizeof(float);
      auto* first = static_cast<float*>(std::align(16, n_scratch * sizeof(float), aligned, room));
      std::vector<typename Item::Local> locals(static_cast<std::size_t>(n_x) * static_cast<std::size_t>(n_y));
      for (int phase = 0; phase < Item::n_phases; ++phase) {
        for (int i = 0; i < n_x * n_y; ++i) {
          const int thread = block % 2 == 0 ? i : n_x * n_y - 1 - i;
          item.phase(phase, block, thread % n_x, thread / n_x, locals[static_cast<std::size_t>(thread)], first);
        }
      }
    }
  }

  template <class First, class Second>
  void blocks_two(std::size_t n_first, const First& first, std::size_t n_second, const Second& second, int n_x,
                  int n_y, std::size_t n_scratch) {
    blocks(n_first, n_x, n_y, n_scratch, first);
    blocks(n_second, n_x, n_y, n_scratch, second);
  }

  static std::size_t scratch_bytes(std::size_t) { return 0; }

  // Sorts by the lowest n_bits, stably. Returns 1: the result lies in the second arrays.
  int sort_pairs(std::uint64_t* const* keys, std::uint32_t* const* values, std::size_t size, int n_bits, Memory) {
    const std::uint64_t mask = n_bits == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n_bits) - 1;
    std::vector<std::size_t> order(size);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return (keys[0][a] & mask) < (keys[0][b] & mask); });
    for (std::size_t i = 0; i < size; ++i) {
      keys[1][i] = keys[0][order[i]];
      values[1][i] = values[0][order[i]];
    }
    return 1;
  }

  template <class T>
  void inclusive_sum(T* data, std::size_t size, Memory) {
    std::partial_sum(data, data + size, data);
  }

  void fill(void* target, int byte, std::size_t n_bytes) { std::memset(target, byte, n_bytes); }

  void read(void* target, const void* source, std::size_t n_bytes) { std::memcpy(target, source, n_bytes); }

  void read_two(void* target, const void* source, std::size_t n_bytes, void* target_2, const void* source_2,
                std::size_t n_bytes_2) {
    read(target, source, n_bytes);
    read(target_2, source_2, n_bytes_2);
  }

  bool is_capturing() const { return false; }

  template <class Body>
  std::shared_ptr<void> record(Body&&) {
    return nullptr;
  }

  void replay(void*) {}
};

template class GpuLattice<HostDevice>;
template class GpuMeanField<HostDevice>;

int n_devices() { return 0; }
bool can_run_on(int) { return true; }
std::string toolkit() { return "host loops"; }

}  // namespace crfasrnn::gpu
