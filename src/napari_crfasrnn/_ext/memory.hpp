// Large arrays whose memory is kept and reused.
//
// The first touch of fresh memory costs about five times a reuse (the kernel clears it page by
// page), and a mean-field run needs several tens of megabytes for a fraction of a second.
// Blocks therefore go back to a cache of bounded size, and the next lattice takes them from there. Of large
// images more is kept than that, on loan (Linux): pages that the system takes when it needs them.
#pragma once

#include <cstddef>
#include <utility>

namespace crfasrnn {

// 64-byte aligned memory of at least `n_bytes`; throws std::bad_alloc. `capacity` receives the
// size to hand back to `release_block`.
void* acquire_block(std::size_t n_bytes, std::size_t& capacity);
void release_block(void* block, std::size_t capacity) noexcept;

// Give all cached memory back to the system; returns how many bytes that were.
std::size_t release_cached_memory() noexcept;

// An uninitialised array of trivial elements. Moves, does not copy.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size) : size_(size) {
    if (size != 0) data_ = static_cast<T*>(acquire_block(size * sizeof(T), capacity_));
  }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        capacity_(std::exchange(other.capacity_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      clear();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
      capacity_ = std::exchange(other.capacity_, 0);
    }
    return *this;
  }
  ~Buffer() { clear(); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::size_t n_bytes() const { return capacity_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

  // Forget the elements past `size`, keep the memory.
  void shrink(std::size_t size) {
    if (size < size_) size_ = size;
  }
  void clear() noexcept {
    if (data_ != nullptr) release_block(data_, capacity_);
    data_ = nullptr;
    size_ = capacity_ = 0;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace crfasrnn
