// A small pool of threads. Work is cut into ranges whose results do not depend on who computes
// them, so every number of threads gives the same bits.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
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

// While it lives, the thread that made it asks now and then (every 50 ms at most) whether to go on: between the
// ranges of its parallel_for calls, and where it calls `pause`. What `ask` throws comes out of there. An empty
// function is never called.
class Pauses {
 public:
  explicit Pauses(std::function<void()> ask);
  ~Pauses();
  Pauses(const Pauses&) = delete;
  Pauses& operator=(const Pauses&) = delete;

  void take();

 private:
  std::function<void()> ask_;
  std::chrono::steady_clock::time_point last_;
  Pauses* outer_;
};

// Does nothing in threads that have no Pauses.
void pause();

// Call `body(begin, end)` for ranges of about `grain` that cover [0, total). `body` must not
// throw, nor call parallel_for. When the pool is busy with another caller, or there is only one range, the calling
// thread does all the work.
template <class Body>
void parallel_for(std::size_t total, std::size_t grain, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  detail::run_ranges(
      total, grain,
      [](void* context, std::size_t begin, std::size_t end) { (*static_cast<Plain*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Call `body(begin, end)` for pieces that cover [0, total), one after the other in this thread, and `between()`
// after each: for long loops that threads cannot share.
template <class Between, class Body>
void in_pieces(std::size_t total, const Between& between, const Body& body) {
  constexpr std::size_t piece = 1 << 18;
  for (std::size_t begin = 0; begin < total; begin += piece) {
    body(begin, total - begin < piece ? total : begin + piece);
    between();
  }
}

// Exceptions must not leave the body of a parallel_for: the first is kept and thrown later.
class FirstException {
 public:
  // Calls nothing once there is an exception.
  template <class Body>
  void guard(Body&& body) noexcept {
    try {
      if (!failed_.load(std::memory_order_relaxed)) body();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!first_) first_ = std::current_exception();
      failed_.store(true, std::memory_order_relaxed);
    }
  }
  // For long guarded bodies, again and again: ends them when another one has failed, or when this thread is
  // told to stop.
  void pause() const {
    struct Failed {};
    if (failed_.load(std::memory_order_relaxed)) throw Failed{};
    crfasrnn::pause();
  }
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::mutex mutex_;
  std::atomic<bool> failed_{false};
  std::exception_ptr first_;
};

}  // namespace crfasrnn
