// Host memory of CPU tensors: blocks that are resident only while they are used.
#include "shim.h"

#include <ATen/Functions.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/Exception.h>

#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <list>
#include <mutex>

namespace {

// In front of every block; its size keeps libtorch's alignment.
struct alignas(64) Header {
  size_t mapped_bytes;  // 0: from the heap
  bool reusable;
};

constexpr size_t kPageBytes = 4096;

Header* header_of(void* data) { return static_cast<Header*>(data) - 1; }

// Freed blocks that the next layer may take, newest first. What is in use and what is kept together
// are never more than was in use at once before, or than what is in use and the limit.
class FreeBlocks {
 public:
  // A kept block of this size, or null: then the caller maps one.
  void* take(size_t bytes) {
    Blocks superfluous;
    void* base = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
        if (block->second != bytes) continue;
        base = block->first;
        kept_bytes_ -= bytes;
        blocks_.erase(block);
        break;
      }
      used_bytes_ += bytes;
      most_bytes_ = std::max(most_bytes_, used_bytes_);
      superfluous = shrink();
    }
    unmap(superfluous);
    return base;
  }

  void put(void* base, size_t bytes) {
    Blocks superfluous;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      blocks_.emplace_front(base, bytes);
      kept_bytes_ += bytes;
      used_bytes_ -= bytes;
      superfluous = shrink();
    }
    unmap(superfluous);
  }

  // Forgets how much was in use at once: the limit alone holds for what is kept now.
  void give_back() {
    Blocks superfluous;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      most_bytes_ = used_bytes_;
      superfluous = shrink();
    }
    unmap(superfluous);
  }

  void limit(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_bytes_ = bytes;
  }

 private:
  using Blocks = std::list<std::pair<void*, size_t>>;

  Blocks shrink() {
    Blocks superfluous;
    const size_t allowed = std::max(limit_bytes_, most_bytes_ - used_bytes_);
    while (kept_bytes_ > allowed) {
      kept_bytes_ -= blocks_.back().second;
      superfluous.splice(superfluous.end(), blocks_, std::prev(blocks_.end()));
    }
    return superfluous;
  }

  static void unmap(const Blocks& blocks) {
    for (const auto& block : blocks) ::munmap(block.first, block.second);
  }

  std::mutex mutex_;
  Blocks blocks_;
  size_t kept_bytes_ = 0;
  size_t used_bytes_ = 0;
  size_t most_bytes_ = 0;
  size_t limit_bytes_ = 0;
};

FreeBlocks& free_blocks() {
  // Never destroyed: tensors may outlive static objects.
  static auto* blocks = new FreeBlocks;
  return *blocks;
}

void release(void* data) {
  if (data == nullptr) return;
  Header* header = header_of(data);
  if (header->mapped_bytes == 0) {
    std::free(header);
  } else if (header->reusable) {
    free_blocks().put(header, header->mapped_bytes);
  } else {
    ::munmap(header, header->mapped_bytes);
  }
}

// Small blocks come from the heap, large ones are mappings of their own. A fresh mapping is zero
// and not resident until it is touched.
class HostAllocator final : public at::Allocator {
 public:
  HostAllocator(size_t mapped_from, size_t reused_up_to)
      : mapped_from_(mapped_from), reused_up_to_(reused_up_to) {}

  at::DataPtr allocate(size_t bytes) override {
    const at::Device cpu(at::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &release, cpu};
    Header header{0, false};
    void* base = nullptr;
    if (bytes < mapped_from_) {
      const int refused = ::posix_memalign(&base, alignof(Header), bytes + sizeof(Header));
      TORCH_CHECK(refused == 0, "no memory for ", bytes, " bytes");
    } else {
      const size_t pages = (bytes + sizeof(Header) + kPageBytes - 1) / kPageBytes;
      header = {pages * kPageBytes, bytes <= reused_up_to_};
      base = header.reusable ? free_blocks().take(header.mapped_bytes) : nullptr;
      if (base == nullptr) base = map(header.mapped_bytes);
    }
    auto* placed = static_cast<Header*>(base);
    *placed = header;
    return {placed + 1, placed + 1, &release, cpu};
  }

  at::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* target, const void* source, size_t bytes) const override {
    std::memcpy(target, source, bytes);
  }

 private:
  static void* map(size_t bytes) {
    void* base =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(base != MAP_FAILED, "no memory for a mapping of ", bytes, " bytes");
    // Fewer page faults where the system has huge pages to give; a refusal costs nothing.
    ::madvise(base, bytes, MADV_HUGEPAGE);
    return base;
  }

  const size_t mapped_from_;
  const size_t reused_up_to_;
};

// Maps whatever it is asked for, and never reuses.
at::Allocator* mapping_allocator() {
  static auto* allocator = new HostAllocator(0, 0);
  return allocator;
}

}  // namespace

extern "C" {

// Makes CPU tensors of at least `mapped_from` bytes mappings of their own, of which up to `kept`
// bytes stay for reuse where a block has no more than `reused_up_to` bytes.
char* plumb_allocator_install(size_t mapped_from, size_t reused_up_to, size_t kept) {
  return plumb_guarded([&] {
    free_blocks().limit(kept);
    c10::SetCPUAllocator(new HostAllocator(mapped_from, reused_up_to), /*priority=*/255);
    // The heap serves small things and libraries' own buffers: one for all threads, with a fixed
    // size from which a block is given back when it is freed.
    TORCH_CHECK(mallopt(M_ARENA_MAX, 1) == 1 && mallopt(M_MMAP_THRESHOLD, reused_up_to) == 1,
                "the C library's allocator does not take its settings");
  });
}

void plumb_allocator_give_back() { free_blocks().give_back(); }

// A vector of `elements` zeros of `like`'s type in a mapping of its own.
char* plumb_mapped_zeros(const at::Tensor* like, int64_t elements, at::Tensor** result) {
  return plumb_guarded([&] {
    TORCH_CHECK(like->device().is_cpu(), "mappings are host memory, not ", like->device().str());
    const size_t bytes = static_cast<size_t>(elements) * like->element_size();
    auto* allocator = mapping_allocator();
    c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(
        c10::StorageImpl::use_byte_size_t(), bytes, allocator->allocate(bytes), allocator,
        /*resizable=*/true));
    at::Tensor vector = at::empty({0}, like->options());
    vector.set_(storage, 0, {elements}, {1});
    *result = new at::Tensor(std::move(vector));
  });
}

}  // extern "C"
