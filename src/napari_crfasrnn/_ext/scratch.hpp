// Small arrays for the threads that work on one thing at a time, such as the rows of a tile: reused while they are
// in the cache.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <vector>

#include "memory.hpp"
#include "parallel.hpp"

namespace crfasrnn {

template <class T>
class Scratch {
 public:
  explicit Scratch(std::size_t size) {
    for (int i = 0; i < n_threads(); ++i) buffers_.emplace_back(size);
    for (Buffer<T>& buffer : buffers_) free_.push_back(buffer.data());
  }

  // An array for as long as this lives; waits while there is none.
  class Loan {
   public:
    explicit Loan(Scratch& scratch) : scratch_(scratch) {
      std::unique_lock lock(scratch.mutex_);
      scratch.given_back_.wait(lock, [&] { return !scratch.free_.empty(); });
      data_ = scratch.free_.back();
      scratch.free_.pop_back();
    }
    ~Loan() {
      {
        const std::lock_guard lock(scratch_.mutex_);
        scratch_.free_.push_back(data_);
      }
      scratch_.given_back_.notify_one();
    }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    T* data() const { return data_; }

   private:
    Scratch& scratch_;
    T* data_;
  };

 private:
  std::vector<Buffer<T>> buffers_;
  std::vector<T*> free_;
  std::mutex mutex_;
  std::condition_variable given_back_;
};

}  // namespace crfasrnn
