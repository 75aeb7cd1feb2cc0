// The C face of the shim. Every function that can fail returns NULL on success and otherwise a
// message to be released with plumb_string_free; no exception ever crosses it. Tensors are
// `at::Tensor*`, as in torch-sys; returned ones are owned by the caller.
#pragma once

#include <cstddef>
#include <cstdint>

#include <exception>
#include <string>

namespace at {
class Tensor;
}

// malloc'ed copy of `message`, never NULL.
char* plumb_message(const std::string& message) noexcept;

// The message of an exception; for c10 errors without the C++ stack trace.
char* plumb_message_of(const std::exception& error) noexcept;

// Runs `body`, turning whatever it throws into a message.
template <typename Body>
char* plumb_guarded(Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return plumb_message_of(error);
  } catch (...) {
    return plumb_message("an exception of unknown type");
  }
}
