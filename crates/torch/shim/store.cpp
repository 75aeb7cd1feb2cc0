#include "store.h"

#include "shim.h"

#include <c10/util/Exception.h>

#include <cstdlib>

namespace plumb {

namespace {

plumb_store_key view(const std::string& key) { return {key.data(), key.size()}; }

std::vector<plumb_store_key> views(const std::vector<std::string>& keys) {
  std::vector<plumb_store_key> list;
  list.reserve(keys.size());
  for (const auto& key : keys) list.push_back(view(key));
  return list;
}

// Throws what a callback reported.
void require(char* message) {
  if (message == nullptr) return;
  const std::string text(message);
  std::free(message);
  C10_THROW_ERROR(DistStoreError, text);
}

void keep_value(void* sink, const uint8_t* value, size_t bytes) {
  static_cast<std::vector<std::vector<uint8_t>>*>(sink)->emplace_back(value, value + bytes);
}

}  // namespace

c10::intrusive_ptr<c10d::Store> CallbackStore::clone() {
  return c10::intrusive_ptr<c10d::Store>::unsafe_reclaim_from_nonowning(this);
}

void CallbackStore::set(const std::string& key, const std::vector<uint8_t>& value) {
  require(callbacks_.set(callbacks_.context, view(key), value.data(), value.size()));
}

std::vector<std::vector<uint8_t>> CallbackStore::fetch(const std::vector<std::string>& keys,
                                                       std::chrono::milliseconds timeout) {
  std::vector<std::vector<uint8_t>> values;
  const auto key_views = views(keys);
  require(callbacks_.get(callbacks_.context, key_views.data(), key_views.size(), timeout.count(),
                         keep_value, &values));
  TORCH_CHECK(values.size() == keys.size(), "the store returned ", values.size(), " values for ",
              keys.size(), " keys");
  return values;
}

std::vector<uint8_t> CallbackStore::get(const std::string& key) {
  return fetch({key}, timeout_).front();
}

int64_t CallbackStore::add(const std::string& key, int64_t amount) {
  int64_t sum = 0;
  require(callbacks_.add(callbacks_.context, view(key), amount, &sum));
  return sum;
}

bool CallbackStore::deleteKey(const std::string& key) {
  int existed = 0;
  require(callbacks_.remove(callbacks_.context, view(key), &existed));
  return existed != 0;
}

bool CallbackStore::check(const std::vector<std::string>& keys) {
  int exist = 0;
  const auto key_views = views(keys);
  require(callbacks_.check(callbacks_.context, key_views.data(), key_views.size(), &exist));
  return exist != 0;
}

int64_t CallbackStore::getNumKeys() {
  C10_THROW_ERROR(NotImplementedError, "this store does not count its keys");
}

void CallbackStore::wait(const std::vector<std::string>& keys) { fetch(keys, timeout_); }

void CallbackStore::wait(const std::vector<std::string>& keys,
                         const std::chrono::milliseconds& timeout) {
  fetch(keys, timeout);
}

}  // namespace plumb

extern "C" char* plumb_string_new(const char* data, size_t bytes) {
  return plumb_message(std::string(data, bytes));
}
