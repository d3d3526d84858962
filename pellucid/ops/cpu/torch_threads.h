// Threads that torch has already: work that stands between two of its products runs on those, and no second pool wants the same cores (docs/LOG.md).
#pragma once
#include <atomic>
#include <cstdint>
#include <type_traits>

namespace pellucid {

// The entry of libgomp that its compiler calls for `#pragma omp parallel`: https://gcc.gnu.org/onlinedocs/libgomp/Implementing-PARALLEL-construct.html
using Parallel = void (*)(void (*work)(void*), void* context, unsigned n_threads, unsigned flags);

// Whose threads, and how many; null: this library's own pool.
struct Threads {
  Parallel parallel;
  int n;
};

using Chunk = void (*)(void* context, int64_t chunk);
void run_on(const Threads& threads, int64_t n_chunks, Chunk chunk, void* context);

// f(chunk) for every chunk below n_chunks, each once, in any order and on any of the threads.
template <class F>
void parallel_on(const Threads& threads, int64_t n_chunks, F&& f) {
  auto call = [](void* context, int64_t chunk) { (*static_cast<std::remove_reference_t<F>*>(context))(chunk); };
  run_on(threads, n_chunks, call, const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace pellucid
