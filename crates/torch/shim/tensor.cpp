// Autograd, storage and optimiser calls that tch does not offer.
#include "shim.h"

#include <ATen/Functions.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <c10/core/GradMode.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdlib>
#include <cstring>
#include <vector>

char* plumb_message(const std::string& message) noexcept {
  char* copy = static_cast<char*>(std::malloc(message.size() + 1));
  if (copy == nullptr) std::abort();
  std::memcpy(copy, message.c_str(), message.size() + 1);
  return copy;
}

char* plumb_message_of(const std::exception& error) noexcept {
  if (const auto* c10_error = dynamic_cast<const c10::Error*>(&error)) {
    return plumb_message(c10_error->what_without_backtrace());
  }
  return plumb_message(error.what());
}

namespace {

std::vector<at::Tensor> tensors(at::Tensor* const* pointers, size_t count) {
  std::vector<at::Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(*pointers[i]);
  return list;
}

}  // namespace

extern "C" {

void plumb_string_free(char* message) { std::free(message); }

// Vector-Jacobian product. results[i] is NULL where outputs do not depend on inputs[i].
char* plumb_vjp(at::Tensor* const* outputs, at::Tensor* const* grad_outputs, size_t output_count,
                at::Tensor* const* inputs, size_t input_count, int retain_graph,
                at::Tensor** results) {
  return plumb_guarded([&] {
    auto grads = torch::autograd::grad(
        tensors(outputs, output_count), tensors(inputs, input_count),
        tensors(grad_outputs, output_count), retain_graph != 0, /*create_graph=*/false,
        /*allow_unused=*/true);
    TORCH_CHECK(grads.size() == input_count, "autograd returned ", grads.size(), " gradients for ",
                input_count, " inputs");
    for (size_t i = 0; i < input_count; ++i) {
      results[i] = grads[i].defined() ? new at::Tensor(std::move(grads[i])) : nullptr;
    }
  });
}

char* plumb_storage_bytes(const at::Tensor* tensor, size_t* bytes) {
  return plumb_guarded([&] { *bytes = tensor->storage().nbytes(); });
}

// Resizes the storage itself, so that every view of it, also those that autograd saved, gives up
// (or gets back) its memory. The content after growing is undefined.
char* plumb_storage_resize(const at::Tensor* tensor, size_t bytes) {
  return plumb_guarded([&] {
    c10::Storage storage = tensor->storage();
    c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
    TORCH_CHECK(impl->resizable() && impl->allocator() != nullptr, "the storage is not resizable");
    if (impl->nbytes() == bytes) return;
    if (bytes == 0) {
      impl->set_data_ptr_noswap(impl->allocator()->allocate(0));
    } else {
      TORCH_CHECK(impl->nbytes() == 0, "a storage of ", impl->nbytes(),
                  " bytes can only be released, not resized to ", bytes);
      impl->set_data_ptr_noswap(impl->allocator()->allocate(bytes));
    }
    impl->set_nbytes(bytes);
  });
}

// Address and length of the elements of a contiguous CPU tensor.
char* plumb_contiguous_bytes(const at::Tensor* tensor, uint8_t** data, size_t* bytes) {
  return plumb_guarded([&] {
    TORCH_CHECK(tensor->device().is_cpu(), "the tensor is on ", tensor->device().str(), ", not cpu");
    TORCH_CHECK(tensor->is_contiguous(), "the tensor is not contiguous");
    TORCH_CHECK(tensor->layout() == at::kStrided, "the tensor is not dense");
    *data = static_cast<uint8_t*>(tensor->data_ptr());
    *bytes = tensor->nbytes();
  });
}

// One decoupled-weight-decay Adam step over lists of tensors, in one pass over memory. `steps` are
// one-element float tensors that already hold the number of the step being taken, from 1.
char* plumb_fused_adamw(at::Tensor* const* params, at::Tensor* const* grads,
                        at::Tensor* const* exp_avgs, at::Tensor* const* exp_avg_sqs,
                        at::Tensor* const* steps, size_t count, double lr, double beta1,
                        double beta2, double weight_decay, double eps) {
  return plumb_guarded([&] {
    c10::AutoGradMode no_grad(false);
    at::_fused_adamw_(tensors(params, count), tensors(grads, count), tensors(exp_avgs, count),
                      tensors(exp_avg_sqs, count), /*max_exp_avg_sqs=*/{}, tensors(steps, count), lr,
                      beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
  });
}

// Causal attention of sequences laid end to end, by libtorch's flash kernel; differentiable.
// `window` is how many tokens before itself a token sees; negative: all.
char* plumb_varlen_attention(const at::Tensor* q, const at::Tensor* k, const at::Tensor* v,
                             const at::Tensor* cu_seqlens, int64_t longest, int64_t window,
                             at::Tensor** result) {
  return plumb_guarded([&] {
    const std::optional<int64_t> left = window < 0 ? std::nullopt : std::make_optional(window);
    const std::optional<int64_t> right = window < 0 ? std::nullopt : std::make_optional<int64_t>(0);
    auto outputs = at::_flash_attention_forward(
        *q, *k, *v, *cu_seqlens, *cu_seqlens, longest, longest, /*dropout_p=*/0.0,
        /*is_causal=*/true, /*return_debug_mask=*/false, /*scale=*/std::nullopt, left, right);
    *result = new at::Tensor(std::move(std::get<0>(outputs)));
  });
}

}  // extern "C"
