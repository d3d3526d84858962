#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>

namespace pellucid {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kSpin = std::chrono::microseconds(50);   // about what Python takes between two products
constexpr auto kYield = std::chrono::microseconds(300);  // after so long without work a thread sleeps
constexpr auto kYieldAfterTeam = std::chrono::milliseconds(2);  // what an engine does between two passes; waking takes as long as three steps of a small one
constexpr int kPausesAYield = 64;  // a call of the system takes more of a core that two threads share than pausing does
constexpr int kPauses = 16;  // between two looks at the clock

std::atomic<Pool*> the_pool{nullptr};
std::mutex the_pool_mutex;
thread_local bool in_chunk = false;  // this thread runs a chunk, whose own calls are not split further
thread_local bool owns_pool = false;  // this thread has a Team

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool& Pool::get() {
  if (Pool* pool = the_pool.load(std::memory_order_acquire)) return *pool;
  std::lock_guard lock(the_pool_mutex);
  if (!the_pool.load(std::memory_order_relaxed)) {
    // A forked child has none of its parent's threads, and what they held stays locked there: it begins anew. The old pool is left as it is.
    static const int registered = pthread_atfork(
        [] { the_pool_mutex.lock(); }, [] { the_pool_mutex.unlock(); },
        [] { the_pool.store(nullptr), in_chunk = owns_pool = false, the_pool_mutex.unlock(); });
    (void)registered;
    the_pool.store(new Pool, std::memory_order_release);  // never destroyed: its threads end with the process
  }
  return *the_pool.load(std::memory_order_relaxed);
}

void Pool::resize(int n_threads) {
  if (n_threads == size() || owns_pool || in_chunk) return;
  std::lock_guard lock(mutex_);
  try {
    for (; n_started_ < n_threads; ++n_started_) std::thread(&Pool::work, this, n_started_).detach();
  } catch (const std::system_error&) {
    n_threads = n_started_;  // the system gives no more threads: size() says how many there are
  }
  n_active_.store(n_threads);
}

// One chunk of the call at hand, if there is one that nobody has. A claim holds for that call alone: head_ names the call, and a call ends only after
// all of its chunks were done, so what belongs to it cannot change before this chunk's end.
bool Pool::claim(int64_t& chunk, Chunk& call, void*& context) {
  uint64_t head = head_.load(std::memory_order_acquire);
  while (uint32_t left = static_cast<uint32_t>(head)) {
    if (!head_.compare_exchange_weak(head, head - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    chunk = n_chunks_.load(std::memory_order_relaxed) - left;
    call = call_.load(std::memory_order_relaxed);
    context = context_.load(std::memory_order_relaxed);
    return true;
  }
  return false;
}

void Pool::run(int64_t n_chunks, Chunk call, void* context) {
  if (n_chunks <= 0) return;
  if (in_chunk || n_chunks == 1 || size() == 1 || n_chunks > UINT32_MAX) {
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk) call(context, chunk);
    return;
  }
  std::unique_lock lock(mutex_, std::defer_lock);
  if (!owns_pool) lock.lock();
  call_.store(call, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  n_chunks_.store(n_chunks, std::memory_order_relaxed);
  n_done_.store(0, std::memory_order_relaxed);
  head_.store(((head_.load(std::memory_order_relaxed) >> 32) + 1) << 32 | static_cast<uint64_t>(n_chunks));
  if (n_asleep_.load()) {  // after head_, as a worker looks at head_ after it counted itself: one of the two sees the other
    bell_.fetch_add(1);
    bell_.notify_all();
  }
  int64_t chunk, n_mine = 0;
  in_chunk = true;
  for (; claim(chunk, call, context); ++n_mine) call(context, chunk);
  in_chunk = false;
  n_done_.fetch_add(n_mine, std::memory_order_acq_rel);
  for (int spins = 0; n_done_.load(std::memory_order_acquire) != n_chunks; ++spins) spins < 1000 ? pause() : static_cast<void>(sched_yield());
}

void Pool::work(int index) {
  in_chunk = true;
  auto idle_since = Clock::now();
  std::chrono::microseconds patience = kYield;
  for (;;) {
    int64_t chunk;
    Chunk call;
    void* context;
    const bool active = index < n_active_.load(std::memory_order_relaxed);
    if (active && claim(chunk, call, context)) {
      do {
        call(context, chunk);
        n_done_.fetch_add(1, std::memory_order_acq_rel);
      } while (claim(chunk, call, context));
      idle_since = Clock::now();
      continue;
    }
    const auto now = Clock::now();
    if (n_held_.load(std::memory_order_relaxed)) idle_since = std::max(idle_since, now - kSpin), patience = kYieldAfterTeam;
    const auto idle = now - idle_since;
    if (active && idle < kSpin) {
      for (int i = 0; i < kPauses && !static_cast<uint32_t>(head_.load(std::memory_order_relaxed)); ++i) pause();
    } else if (active && idle < patience) {
      for (int i = 0; i < kPausesAYield && !static_cast<uint32_t>(head_.load(std::memory_order_relaxed)); ++i) pause();
      sched_yield();
    } else {
      const int bell = bell_.load();
      n_asleep_.fetch_add(1);
      if (!active || !static_cast<uint32_t>(head_.load())) bell_.wait(bell);
      n_asleep_.fetch_sub(1);
      idle_since = Clock::now(), patience = kYield;
    }
  }
}

Team::Team() : pool_(Pool::get()), outermost_(!owns_pool && !in_chunk) {
  if (!outermost_) return;
  pool_.mutex_.lock();
  owns_pool = true;
  pool_.n_held_.fetch_add(1);
  if (pool_.n_asleep_.load()) {
    pool_.bell_.fetch_add(1);
    pool_.bell_.notify_all();
  }
}

Team::~Team() {
  if (!outermost_) return;
  pool_.n_held_.fetch_sub(1);
  owns_pool = false;
  pool_.mutex_.unlock();
}

}  // namespace pellucid
