// Threads that wait for work, and work cut into chunks that whoever is free takes next.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <type_traits>

namespace pellucid {

// One pool a process; the thread that calls works too. Chunks are claimed one by one, so that a thread which the system takes away holds up one
// chunk and not its share: the caller finishes alone if it must. A worker spins briefly for the next call, then yields, then sleeps:
// later after a Team, which is one of many.
class Pool {
 public:
  using Chunk = void (*)(void* context, int64_t chunk);

  static Pool& get();

  // How many threads work from now on, the caller counted. Fewer where the system gives no more.
  void resize(int n_threads);
  int size() const { return n_active_.load(std::memory_order_relaxed); }

  // Calls chunk(context, 0) ... chunk(context, n_chunks - 1), each once, in any order and on any thread, and returns after the last. What one call
  // wrote, the next call's chunks see. From any thread: calls from several wait for each other. Inside of a chunk: all on this thread.
  void run(int64_t n_chunks, Chunk chunk, void* context);

 private:
  friend class Team;
  Pool() = default;
  void work(int index);
  bool claim(int64_t& chunk, Chunk& call, void*& context);

  std::mutex mutex_;  // held by the thread whose work is done
  std::atomic<uint64_t> head_{0};  // number of the call << 32 | chunks nobody has claimed yet
  std::atomic<Chunk> call_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int64_t> n_chunks_{0}, n_done_{0};
  std::atomic<int> n_active_{1}, n_asleep_{0}, n_held_{0}, bell_{0};
  int n_started_ = 1;  // under mutex_
};

// While one lives, the pool is this thread's and no worker sleeps: for a row of small calls, such as the steps of a decoding pass.
class Team {
 public:
  Team();
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

 private:
  Pool& pool_;
  bool outermost_;
};

// f(chunk) for every chunk below n_chunks, on the pool.
template <class F>
void parallel_for(int64_t n_chunks, F&& f) {
  auto call = [](void* context, int64_t chunk) { (*static_cast<std::remove_reference_t<F>*>(context))(chunk); };
  Pool::get().run(n_chunks, call, const_cast<void*>(static_cast<const void*>(&f)));
}

// The same, where memory is read once: every thread goes through a range of its own from its beginning, and then helps in the others'. What lies
// side by side is read by one thread, as the processor's own fetching in advance wants it.
template <class F>
void parallel_ranges(int64_t n_chunks, F&& f) {
  struct alignas(64) Range {  // a line of its own
    std::atomic<int64_t> next;
    int64_t end;
  };
  constexpr int64_t kRanges = 64;
  Range ranges[kRanges];
  const int64_t n = std::min<int64_t>(std::min<int64_t>(Pool::get().size(), kRanges), n_chunks);
  for (int64_t r = 0; r < n; ++r) ranges[r].next.store(n_chunks * r / n, std::memory_order_relaxed), ranges[r].end = n_chunks * (r + 1) / n;
  parallel_for(n, [&](int64_t mine) {
    for (int64_t i = 0; i < n; ++i) {
      Range& range = ranges[(mine + i) % n];
      for (int64_t chunk; (chunk = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;) f(chunk);
    }
  });
}

}  // namespace pellucid
