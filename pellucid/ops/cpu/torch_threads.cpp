#include "torch_threads.h"

#include "pool.h"

namespace pellucid {
namespace {

struct Call {
  Chunk chunk;
  void* context;
  int64_t n_chunks;
  std::atomic<int64_t> next{0};
};

void work(void* call_) {
  auto& call = *static_cast<Call*>(call_);
  for (int64_t i; (i = call.next.fetch_add(1, std::memory_order_relaxed)) < call.n_chunks;) call.chunk(call.context, i);
}

}  // namespace

void run_on(const Threads& threads, int64_t n_chunks, Chunk chunk, void* context) {
  if (!threads.parallel) return Pool::get().run(n_chunks, chunk, context);
  Call call{chunk, context, n_chunks};
  if (n_chunks > 1 && threads.n > 1) return threads.parallel(work, &call, static_cast<unsigned>(threads.n), 0);  // which ends with a barrier
  work(&call);
}

}  // namespace pellucid
