// Declares just enough of gloo for c10d's ProcessGroupGloo.hpp to compile: libtorch_cpu exports the
// Gloo backend, but its wheel does not ship gloo's headers. Objects of these types are only held by
// pointer here; they are made, laid out and destroyed inside libtorch_cpu.
#pragma once
#include <chrono>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  // Closes every connection of this rank, which fails the operations in flight on both ends.
  void closeConnections();
};
}  // namespace gloo
