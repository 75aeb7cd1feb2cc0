// libtorch's Gloo process group. gloo's own headers are not in the wheel; see gloo_stubs/.
#define USE_C10D_GLOO

#include "shim.h"
#include "store.h"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <memory>

namespace {

class Group final : public c10d::ProcessGroupGloo {
 public:
  using ProcessGroupGloo::ProcessGroupGloo;

  // Closes this rank's connections; the peers' operations in flight fail at once.
  void close() {
    for (const auto& context : contexts_) context->closeConnections();
  }
};

c10d::ReduceOp reduce_op(int code) {
  switch (code) {
    case 0:
      return c10d::ReduceOp::SUM;
    case 1:
      return c10d::ReduceOp::MIN;
    case 2:
      return c10d::ReduceOp::MAX;
    default:
      TORCH_CHECK(false, "unknown reduction ", code);
  }
}

}  // namespace

// Shared ownership, so that another thread can close a group that its owner is blocked in.
struct plumb_group {
  c10::intrusive_ptr<Group> inner;
};

struct plumb_work {
  c10::intrusive_ptr<c10d::Work> inner;
};

namespace {

template <typename Start>
char* started(plumb_work** work, Start&& start) {
  return plumb_guarded([&] { *work = new plumb_work{start()}; });
}

}  // namespace

extern "C" {

// Connects to all peers over the interface that `address` belongs to. Takes over `callbacks`, also
// on failure.
char* plumb_gloo_connect(plumb_store_callbacks callbacks, int rank, int world_size,
                         int64_t timeout_millis, const char* address, plumb_group** group) {
  return plumb_guarded([&] {
    const std::chrono::milliseconds timeout(timeout_millis);
    c10::intrusive_ptr<c10d::Store> store =
        c10::make_intrusive<plumb::CallbackStore>(callbacks, timeout);
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    *group = new plumb_group{c10::make_intrusive<Group>(store, rank, world_size, options)};
  });
}

plumb_group* plumb_gloo_share(const plumb_group* group) { return new plumb_group{group->inner}; }

void plumb_gloo_free(plumb_group* group) { delete group; }

char* plumb_gloo_close(const plumb_group* group) {
  return plumb_guarded([&] { group->inner->close(); });
}

char* plumb_gloo_all_reduce(plumb_group* group, const at::Tensor* tensor, int op,
                            plumb_work** work) {
  return started(work, [&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::AllreduceOptions options;
    options.reduceOp = reduce_op(op);
    return group->inner->allreduce(tensors, options);
  });
}

char* plumb_gloo_all_gather(plumb_group* group, const at::Tensor* output, const at::Tensor* input,
                            plumb_work** work) {
  return started(work, [&] {
    at::Tensor out = *output, in = *input;
    return group->inner->_allgather_base(out, in);
  });
}

char* plumb_gloo_reduce_scatter(plumb_group* group, const at::Tensor* output,
                                const at::Tensor* input, int op, plumb_work** work) {
  return started(work, [&] {
    at::Tensor out = *output, in = *input;
    c10d::ReduceScatterOptions options;
    options.reduceOp = reduce_op(op);
    return group->inner->_reduce_scatter_base(out, in, options);
  });
}

char* plumb_gloo_broadcast(plumb_group* group, const at::Tensor* tensor, int root,
                           plumb_work** work) {
  return started(work, [&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return group->inner->broadcast(tensors, options);
  });
}

char* plumb_gloo_barrier(plumb_group* group, plumb_work** work) {
  return started(work, [&] { return group->inner->barrier(); });
}

char* plumb_gloo_send(plumb_group* group, const at::Tensor* tensor, int to, int tag,
                      plumb_work** work) {
  return started(work, [&] {
    std::vector<at::Tensor> tensors{*tensor};
    return group->inner->send(tensors, to, tag);
  });
}

char* plumb_gloo_recv(plumb_group* group, const at::Tensor* tensor, int from, int tag,
                      plumb_work** work) {
  return started(work, [&] {
    std::vector<at::Tensor> tensors{*tensor};
    return group->inner->recv(tensors, from, tag);
  });
}

// Blocks until the operation is done. `timeout_millis` 0 leaves the time limit to the group.
char* plumb_work_wait(plumb_work* work, int64_t timeout_millis) {
  return plumb_guarded([&] {
    const bool done = work->inner->wait(std::chrono::milliseconds(timeout_millis));
    TORCH_CHECK(done, "the operation was aborted");
  });
}

void plumb_work_free(plumb_work* work) { delete work; }

}  // extern "C"
