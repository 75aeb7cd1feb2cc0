// A c10d::Store whose operations are callbacks into Rust.
#pragma once

#include <cstddef>
#include <cstdint>

#include <torch/csrc/distributed/c10d/Store.hpp>

extern "C" {

// Takes one value during a call to `get`.
typedef void (*plumb_value_sink)(void* sink, const uint8_t* value, size_t bytes);

// Keys and values are not NUL-terminated. Callbacks return NULL or a message from
// plumb_string_new, and may be called from any thread.
struct plumb_store_key {
  const char* data;
  size_t bytes;
};

struct plumb_store_callbacks {
  void* context;
  char* (*set)(void* context, plumb_store_key key, const uint8_t* value, size_t bytes);
  // Waits until every key exists and gives their values to the sink in order.
  char* (*get)(void* context, const plumb_store_key* keys, size_t count, int64_t timeout_millis,
               plumb_value_sink sink_value, void* sink);
  char* (*check)(void* context, const plumb_store_key* keys, size_t count, int* exist);
  char* (*add)(void* context, plumb_store_key key, int64_t amount, int64_t* sum);
  char* (*remove)(void* context, plumb_store_key key, int* existed);
  void (*release)(void* context);
};
}

namespace plumb {

class CallbackStore final : public c10d::Store {
 public:
  CallbackStore(plumb_store_callbacks callbacks, std::chrono::milliseconds timeout)
      : c10d::Store(timeout), callbacks_(callbacks) {}
  ~CallbackStore() override { callbacks_.release(callbacks_.context); }
  CallbackStore(const CallbackStore&) = delete;
  CallbackStore& operator=(const CallbackStore&) = delete;

  c10::intrusive_ptr<c10d::Store> clone() override;
  using c10d::Store::set;
  void set(const std::string& key, const std::vector<uint8_t>& value) override;
  std::vector<uint8_t> get(const std::string& key) override;
  int64_t add(const std::string& key, int64_t amount) override;
  bool deleteKey(const std::string& key) override;
  bool check(const std::vector<std::string>& keys) override;
  int64_t getNumKeys() override;
  void wait(const std::vector<std::string>& keys) override;
  void wait(const std::vector<std::string>& keys,
            const std::chrono::milliseconds& timeout) override;

 private:
  std::vector<std::vector<uint8_t>> fetch(const std::vector<std::string>& keys,
                                          std::chrono::milliseconds timeout);
  plumb_store_callbacks callbacks_;
};

}  // namespace plumb
