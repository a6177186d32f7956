// A small pool of threads. Work is cut into ranges whose results do not depend on who computes
// them, so every number of threads gives the same bits.
#pragma once

#include <cstddef>
#include <exception>
#include <mutex>
#include <type_traits>

namespace crfasrnn {

// How many threads a call may use, this one included. 0 restores the default: OMP_NUM_THREADS
// when it is set, else the processors this process may run on.
void set_n_threads(int n_threads);
int n_threads();

namespace detail {
using RangeFunction = void (*)(void* context, std::size_t begin, std::size_t end);
void run_ranges(std::size_t total, std::size_t grain, RangeFunction function, void* context);
}  // namespace detail

// Call `body(begin, end)` for ranges of about `grain` that cover [0, total). `body` must not
// throw. When the pool is busy with another caller, or there is only one range, the calling
// thread does all the work.
template <class Body>
void parallel_for(std::size_t total, std::size_t grain, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  detail::run_ranges(
      total, grain,
      [](void* context, std::size_t begin, std::size_t end) { (*static_cast<Plain*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Exceptions (only std::bad_alloc) must not leave a pool thread: the first is kept and thrown later.
class FirstException {
 public:
  template <class Body>
  void guard(Body&& body) noexcept {
    try {
      body();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!first_) first_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
};

}  // namespace crfasrnn
