// The two passes of disentangled attention on CPUs, as XLA calls them: heads divided over threads.

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <type_traits>

#include "head.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace deberta {

using Numbers = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;
using Bits = ffi::Buffer<ffi::U32>;
using Result = ffi::Result<Numbers>;

// Runs task(0) to task(count - 1), each worker with a state of its own. The calling thread works
// too, so that calls which share the pool never wait for each other.
template <typename MakeState, typename Task>
void Divide(ffi::ThreadPool& pool, int64_t count, MakeState make_state, Task task) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  // What the tasks refer to lives until all are done; a worker that starts later finds none.
  auto work = [shared, count, make_state, task] {
    int64_t index = shared->next++;
    if (index >= count) return;
    auto state = make_state();
    int64_t finished = 0;
    for (; index < count; index = shared->next++, ++finished) task(*state, index);
    std::lock_guard<std::mutex> lock(shared->mutex);
    if ((shared->done += finished) == count) shared->all_done.notify_all();
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::decay_t<decltype(work)>(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == count; });
}

struct Worker {
  explicit Worker(const Sizes& sizes) : head(sizes, c2p, p2c) {}
  Relative c2p, p2c;
  Head head;
};

// What both passes are given.
struct Operands {
  Sizes sizes;
  const float *query, *key, *value, *c2p, *p2c;
  const int32_t *distance_rows, *query_segments, *key_segments;
  const uint32_t* seeds;

  Operands(Numbers q, Numbers k, Numbers v, Numbers relative_key, Numbers relative_query,
           Integers distances, Integers q_segments, Integers k_segments, Bits bits, float scale,
           float rate, int64_t reach, bool causal)
      : query(q.typed_data()),
        key(k.typed_data()),
        value(v.typed_data()),
        c2p(relative_key.typed_data()),
        p2c(relative_query.typed_data()),
        distance_rows(distances.typed_data()),
        query_segments(q_segments.typed_data()),
        key_segments(k_segments.typed_data()),
        seeds(bits.typed_data()) {
    const auto shape = q.dimensions();
    const int64_t c2p_rows = relative_key.dimensions()[0], p2c_rows = relative_query.dimensions()[0];
    sizes = {shape[0], shape[1],     shape[2],     shape[3], std::max(c2p_rows, p2c_rows),
             reach,    c2p_rows > 0, p2c_rows > 0, causal,   scale,
             rate};
  }

  void PackRelative(Worker& worker, int64_t head) const {
    if (sizes.c2p) worker.c2p.Pack(sizes, c2p, distance_rows, head, true, 1);
    if (sizes.p2c) worker.p2c.Pack(sizes, p2c, distance_rows, head, false, sizes.scale);
  }
  int64_t stride() const { return sizes.heads * sizes.size; }
  int64_t content(int64_t item, int64_t head) const {
    return item * sizes.length * stride() + head * sizes.size;
  }
  int64_t tokens(int64_t item) const { return item * sizes.length; }
  Dropout dropout(int64_t item, int64_t head) const {
    if (sizes.rate == 0) return {};
    const uint32_t* first = seeds + 2 * head * sizes.batch + item;
    return {first[0], first[sizes.batch], (uint32_t)(sizes.rate * 4294967296.0 + 0.5)};
  }
};

ffi::Error Forward(ffi::ThreadPool pool, Numbers query, Numbers key, Numbers value, Numbers c2p,
                   Numbers p2c, Integers distances, Integers query_segments, Integers key_segments,
                   Bits seeds, Result out, Result log_sums, float scale, float rate, int64_t reach,
                   bool causal) {
  const Operands x(query, key, value, c2p, p2c, distances, query_segments, key_segments, seeds,
                   scale, rate, reach, causal);
  const Sizes& s = x.sizes;
  // A head's tables are laid out once for as many items as keep every thread busy.
  const int64_t items = std::max<int64_t>(1, s.batch * s.heads / (4 * pool.num_threads()));
  const int64_t groups = (s.batch + items - 1) / items;
  Divide(
      pool, s.heads * groups, [&s] { return std::make_unique<Worker>(s); },
      [&](Worker& worker, int64_t index) {
        const int64_t head = index / groups, first = index % groups * items;
        x.PackRelative(worker, head);
        for (int64_t item = first; item < std::min(first + items, s.batch); ++item) {
          const int64_t at = x.content(item, head);
          worker.head.Forward(x.query + at, x.key + at, x.value + at, x.stride(),
                              x.query_segments + x.tokens(item), x.key_segments + x.tokens(item),
                              x.dropout(item, head), out->typed_data() + at,
                              log_sums->typed_data() + (item * s.heads + head) * s.length);
        }
      });
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, Numbers query, Numbers key, Numbers value, Numbers c2p,
                    Numbers p2c, Integers distances, Integers query_segments, Integers key_segments,
                    Bits seeds, Numbers out, Numbers log_sums, Numbers out_gradient, Result dquery,
                    Result dkey, Result dvalue, Result dc2p, Result dp2c, float scale, float rate,
                    int64_t reach, bool causal) {
  const Operands x(query, key, value, c2p, p2c, distances, query_segments, key_segments, seeds,
                   scale, rate, reach, causal);
  const Sizes& s = x.sizes;
  const int64_t items = std::max<int64_t>(1, s.batch * s.heads / (4 * pool.num_threads()));
  const int64_t groups = (s.batch + items - 1) / items, table = s.rows * s.size;
  // The tables' gradients, each task's own: [terms, heads, groups, rows, size].
  std::vector<float> sums(2 * s.heads * groups * table, 0);
  Divide(
      pool, s.heads * groups, [&s] { return std::make_unique<Worker>(s); },
      [&](Worker& worker, int64_t index) {
        const int64_t head = index / groups, first = index % groups * items;
        x.PackRelative(worker, head);
        for (auto* gradient : {&worker.head.c2p_gradient, &worker.head.p2c_gradient}) {
          std::fill(gradient->begin(), gradient->end(), 0);
        }
        for (int64_t item = first; item < std::min(first + items, s.batch); ++item) {
          const int64_t at = x.content(item, head);
          worker.head.Backward(x.query + at, x.key + at, x.value + at, x.stride(),
                               x.query_segments + x.tokens(item), x.key_segments + x.tokens(item),
                               x.dropout(item, head), out.typed_data() + at,
                               log_sums.typed_data() + (item * s.heads + head) * s.length,
                               out_gradient.typed_data() + at, dquery->typed_data() + at,
                               dkey->typed_data() + at, dvalue->typed_data() + at);
        }
        float* own = sums.data() + index * table;
        if (s.c2p) {
          Relative::Unpack(s, worker.head.c2p_gradient, x.distance_rows, true, 1, own);
        }
        if (s.p2c) {
          Relative::Unpack(s, worker.head.p2c_gradient, x.distance_rows, false, s.scale,
                           own + s.heads * groups * table);
        }
      });
  for (int64_t term : {0, 1}) {
    if (term == 0 ? !s.c2p : !s.p2c) continue;
    float* total = (term == 0 ? dc2p : dp2c)->typed_data();
    std::fill_n(total, s.rows * x.stride(), 0);
    for (int64_t task = 0; task < s.heads * groups; ++task) {
      const float* own = sums.data() + (term * s.heads * groups + task) * table;
      for (int64_t row = 0; row < s.rows; ++row) {
        float* to = total + row * x.stride() + task / groups * s.size;
        for (int64_t d = 0; d < s.size; ++d) to[d] += own[row * s.size + d];
      }
    }
  }
  return ffi::Error::Success();
}

}  // namespace deberta

#define DEBERTA_OPERANDS                                    \
  ffi::Ffi::Bind()                                          \
      .Ctx<ffi::ThreadPool>()                               \
      .Arg<deberta::Numbers>()  /* query [B, L, H, D] */    \
      .Arg<deberta::Numbers>()  /* key */                   \
      .Arg<deberta::Numbers>()  /* value */                 \
      .Arg<deberta::Numbers>()  /* c2p [R or 0, H, D] */    \
      .Arg<deberta::Numbers>()  /* p2c [R or 0, H, D] */    \
      .Arg<deberta::Integers>() /* distance_rows [2L - 1] */ \
      .Arg<deberta::Integers>() /* query_segments [B, L] */ \
      .Arg<deberta::Integers>() /* key_segments [B, L] */   \
      .Arg<deberta::Bits>()     /* seeds [H, 2, B] */

#define DEBERTA_ATTRIBUTES    \
  .Attr<float>("scale")       \
      .Attr<float>("rate")    \
      .Attr<int64_t>("reach") \
      .Attr<bool>("causal")

XLA_FFI_DEFINE_HANDLER_SYMBOL(DebertaForward, deberta::Forward,
                              DEBERTA_OPERANDS.Ret<deberta::Numbers>() /* out [B, L, H, D] */
                                  .Ret<deberta::Numbers>()             /* log_sums [B, H, L] */
                              DEBERTA_ATTRIBUTES);

XLA_FFI_DEFINE_HANDLER_SYMBOL(DebertaBackward, deberta::Backward,
                              DEBERTA_OPERANDS.Arg<deberta::Numbers>() /* out */
                                  .Arg<deberta::Numbers>()             /* log_sums */
                                  .Arg<deberta::Numbers>()             /* gradient of out */
                                  .Ret<deberta::Numbers>()             /* of query */
                                  .Ret<deberta::Numbers>()             /* of key */
                                  .Ret<deberta::Numbers>()             /* of value */
                                  .Ret<deberta::Numbers>()             /* of c2p */
                                  .Ret<deberta::Numbers>()             /* of p2c */
                              DEBERTA_ATTRIBUTES);
