#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#define CRFASRNN_HAS_FORK 1
#include <pthread.h>
#endif

namespace crfasrnn {
namespace {

constexpr int most_threads = 256;

int default_n_threads() {
  int n = static_cast<int>(std::thread::hardware_concurrency());
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const int wanted = std::atoi(text);
    if (wanted > 0) n = wanted;
  }
  return std::clamp(n, 1, most_threads);
}

std::atomic<int> requested_threads{0};

constexpr std::chrono::milliseconds between_pauses{50};
thread_local Pauses* pauses = nullptr;

struct Job {
  std::size_t total = 0;
  std::size_t grain = 1;
  detail::RangeFunction function = nullptr;
  void* context = nullptr;
};

class Pool {
 public:
  // Only one caller at a time (the caller holds the pool's turn).
  void run(const Job& job, int n_helpers) {
    start_workers(n_helpers);
    {
      const std::lock_guard lock(mutex_);
      job_ = job;
      next_.store(0, std::memory_order_relaxed);
      wanted_ = std::min(n_helpers, n_workers_);
      joined_ = 0;
      ++generation_;
    }
    wake_.notify_all();
    std::exception_ptr stopped;
    try {
      work(job, &pause);
    } catch (...) {
      stopped = std::current_exception();
      next_.store(job.total, std::memory_order_relaxed);
    }
    // Helpers that have not woken up yet are no longer wanted; those at work are waited for.
    std::unique_lock lock(mutex_);
    wanted_ = joined_;
    done_.wait(lock, [this] { return running_ == 0; });
    if (stopped) std::rethrow_exception(stopped);
  }

 private:
  void start_workers(int n_helpers) {
    while (n_workers_ < n_helpers) {
      try {
        std::thread([this] { serve(); }).detach();
        ++n_workers_;
      } catch (const std::system_error&) {
        return;  // The system allows no more threads: the work is done by those there are.
      }
    }
  }

  void work(const Job& job, void (*between)() = nullptr) {
    for (;;) {
      const std::size_t begin = next_.fetch_add(job.grain, std::memory_order_relaxed);
      if (begin >= job.total) return;
      job.function(job.context, begin, std::min(begin + job.grain, job.total));
      if (between != nullptr) between();
    }
  }

  void serve() {
    unsigned long seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen && joined_ < wanted_; });
      seen = generation_;
      ++joined_;
      ++running_;
      const Job job = job_;
      lock.unlock();
      work(job);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  int n_workers_ = 0;
  Job job_;
  std::atomic<std::size_t> next_{0};
  unsigned long generation_ = 0;
  int wanted_ = 0;
  int joined_ = 0;
  int running_ = 0;
};

// Workers must not be joined while the process shuts down (on Windows they are already gone),
// and a forked child has none of its parent's: the pool is never destroyed, only replaced.
struct PoolSlot {
  std::mutex turn;
  Pool* pool = nullptr;
};

PoolSlot& slot() {
  static PoolSlot* const instance = new PoolSlot;
  return *instance;
}

#if defined(CRFASRNN_HAS_FORK)
// A fork may happen while another thread holds the turn; the child starts with a fresh one.
const int fork_handler_installed = pthread_atfork(
    [] { slot().turn.lock(); }, [] { slot().turn.unlock(); },
    [] {
      slot().turn.unlock();
      slot().pool = nullptr;
    });
#endif

}  // namespace

void set_n_threads(int n_threads) { requested_threads.store(std::clamp(n_threads, 0, most_threads)); }

int n_threads() {
  static const int by_default = default_n_threads();
  const int requested = requested_threads.load(std::memory_order_relaxed);
  return requested > 0 ? requested : by_default;
}

Pauses::Pauses(std::function<void()> ask)
    : ask_(std::move(ask)), last_(std::chrono::steady_clock::now()), outer_(std::exchange(pauses, this)) {}

Pauses::~Pauses() { pauses = outer_; }

void Pauses::take() {
  if (!ask_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < between_pauses) return;
  ask_();
  last_ = std::chrono::steady_clock::now();
}

void pause() {
  if (pauses != nullptr) pauses->take();
}

namespace detail {

void run_ranges(std::size_t total, std::size_t grain, RangeFunction function, void* context) {
  if (total == 0) return;
  const int helpers = n_threads() - 1;
  if (helpers > 0 && total > grain) {
    PoolSlot& s = slot();
    const std::unique_lock turn(s.turn, std::try_to_lock);
    if (turn.owns_lock()) {
      if (s.pool == nullptr) s.pool = new Pool;
      const std::size_t n_ranges = (total + grain - 1) / grain;
      s.pool->run({total, grain, function, context}, static_cast<int>(std::min<std::size_t>(helpers, n_ranges - 1)));
      return;
    }
  }
  for (std::size_t begin = 0; begin < total; begin += grain) {
    function(context, begin, std::min(begin + grain, total));
    pause();
  }
}

}  // namespace detail
}  // namespace crfasrnn
