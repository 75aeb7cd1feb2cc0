// Streams, events and memory figures of an accelerator, through c10's device-independent guards:
// no CUDA header is needed, and the same binary runs where there is no device.
#include "shim.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace {

c10::Device cuda_device(int index) {
  return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
}

}  // namespace

extern "C" {

// Memory in bytes: free and total on the device, held by live tensors now and at most, and
// reserved by the caching allocator.
char* plumb_device_memory(int index, uint64_t* figures /*[5]*/) {
  return plumb_guarded([&] {
    auto* allocator = at::getDeviceAllocator(c10::DeviceType::CUDA);
    const auto device = static_cast<c10::DeviceIndex>(index);
    const auto info = allocator->getMemoryInfo(device);
    const auto stats = allocator->getDeviceStats(device);
    figures[0] = info.first;
    figures[1] = info.second;
    figures[2] = static_cast<uint64_t>(stats.allocated_bytes[0].current);
    figures[3] = static_cast<uint64_t>(stats.allocated_bytes[0].peak);
    figures[4] = static_cast<uint64_t>(stats.reserved_bytes[0].current);
  });
}

char* plumb_device_reset_peak(int index) {
  return plumb_guarded([&] {
    at::getDeviceAllocator(c10::DeviceType::CUDA)
        ->resetPeakStats(static_cast<c10::DeviceIndex>(index));
  });
}

char* plumb_device_empty_cache() {
  return plumb_guarded([&] { at::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache(); });
}

char* plumb_device_synchronize(int index) {
  return plumb_guarded([&] {
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA)
        .synchronizeDevice(static_cast<c10::DeviceIndex>(index));
  });
}

// Makes `index` the calling thread's device; libraries such as NCCL act on the current one.
char* plumb_device_set(int index) {
  return plumb_guarded([&] {
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).setDevice(cuda_device(index));
  });
}

char* plumb_stream_current(int index, c10::Stream** stream) {
  return plumb_guarded([&] {
    *stream = new c10::Stream(
        c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(cuda_device(index)));
  });
}

char* plumb_stream_new(int index, c10::Stream** stream) {
  return plumb_guarded([&] {
    *stream = new c10::Stream(
        c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStreamFromGlobalPool(
            cuda_device(index), /*isHighPriority=*/true));
  });
}

void plumb_stream_free(c10::Stream* stream) { delete stream; }

char* plumb_stream_native(const c10::Stream* stream, void** handle) {
  return plumb_guarded([&] { *handle = stream->native_handle(); });
}

char* plumb_stream_synchronize(const c10::Stream* stream) {
  return plumb_guarded([&] { stream->synchronize(); });
}

// Makes `stream` the calling thread's current one and returns the one it replaces.
char* plumb_stream_exchange(const c10::Stream* stream, c10::Stream** previous) {
  return plumb_guarded([&] {
    *previous = new c10::Stream(
        c10::impl::VirtualGuardImpl(stream->device_type()).exchangeStream(*stream));
  });
}

// Keeps a tensor's memory from being reused before `stream` has passed this point.
char* plumb_record_stream(const at::Tensor* tensor, const c10::Stream* stream) {
  return plumb_guarded([&] {
    c10::impl::VirtualGuardImpl(stream->device_type())
        .recordDataPtrOnStream(tensor->storage().data_ptr(), *stream);
  });
}

char* plumb_event_new(c10::Event** event) {
  return plumb_guarded([&] { *event = new c10::Event(c10::DeviceType::CUDA); });
}

void plumb_event_free(c10::Event* event) { delete event; }

char* plumb_event_record(c10::Event* event, const c10::Stream* stream) {
  return plumb_guarded([&] { event->record(*stream); });
}

char* plumb_event_block(const c10::Event* event, const c10::Stream* stream) {
  return plumb_guarded([&] { event->block(*stream); });
}

char* plumb_event_query(const c10::Event* event, int* done) {
  return plumb_guarded([&] { *done = event->query() ? 1 : 0; });
}

}  // extern "C"
