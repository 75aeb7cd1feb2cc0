// A KV cache in blocks on the CPU: writing new keys and values, and attention to what is there.
#include "paged_kernel.h"
#include "shim.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace {

using plumb::kBlockTokens;
using plumb::PagedKernel;
using plumb::PagedQuery;

PagedKernel kernel(bool bf16) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return bf16 ? plumb::paged_attend_bf16_avx512 : plumb::paged_attend_f32_avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return bf16 ? plumb::paged_attend_bf16_avx2 : plumb::paged_attend_f32_avx2;
  }
#endif
  return bf16 ? plumb::paged_attend_bf16_base : plumb::paged_attend_f32_base;
}

// One layer's cache and where N rows stand in it.
struct Cache {
  Cache(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& tables,
        const at::Tensor& sequences, const at::Tensor& positions)
      : keys(keys), values(values), tables(tables), sequences(sequences), positions(positions) {
    TORCH_CHECK(keys.dim() == 4 && keys.size(3) == kBlockTokens && keys.is_contiguous(),
                "keys of shape ", keys.sizes(), "; expected dense [B, K, D, ", kBlockTokens, "]");
    blocks = keys.size(0);
    heads = keys.size(1);
    dim = keys.size(2);
    TORCH_CHECK(values.is_contiguous() &&
                    values.sizes() == at::IntArrayRef({blocks, heads, kBlockTokens, dim}),
                "values of shape ", values.sizes(), " beside keys of shape ", keys.sizes());
    kind = keys.scalar_type();
    TORCH_CHECK(kind == at::kFloat || kind == at::kBFloat16, "a cache of ", kind);
    TORCH_CHECK(values.scalar_type() == kind, "values of ", values.scalar_type());
    TORCH_CHECK(keys.is_cpu() && values.is_cpu(), "a cache on ", keys.device());
    for (const auto* ints : {&tables, &sequences, &positions}) {
      TORCH_CHECK(ints->scalar_type() == at::kInt && ints->is_cpu() && ints->is_contiguous(),
                  "block tables, sequences and positions are dense i32 on the CPU");
    }
    rows = sequences.size(0);
    TORCH_CHECK(tables.dim() == 2 && positions.sizes() == sequences.sizes() &&
                    sequences.dim() == 1,
                "tables ", tables.sizes(), ", sequences ", sequences.sizes(), ", positions ",
                positions.sizes());
    const auto* sequence = sequences.const_data_ptr<int32_t>();
    const auto* position = positions.const_data_ptr<int32_t>();
    for (int64_t row = 0; row < rows; ++row) {
      if (sequence[row] < 0) continue;
      TORCH_CHECK(sequence[row] < tables.size(0), "row ", row, " is of sequence ", sequence[row],
                  " of ", tables.size(0));
      TORCH_CHECK(position[row] >= 0 && position[row] < tables.size(1) * kBlockTokens, "row ", row,
                  " is at position ", position[row], " of ", tables.size(1), " blocks");
      const auto* table = tables.const_data_ptr<int32_t>() + sequence[row] * tables.size(1);
      for (int64_t block = 0; block <= position[row] / kBlockTokens; ++block) {
        TORCH_CHECK(table[block] >= 0 && table[block] < blocks, "block ", table[block], " of ",
                    blocks, " in the table of sequence ", sequence[row]);
      }
    }
  }

  const int32_t* table_of(int64_t row) const {
    const auto* sequence = sequences.const_data_ptr<int32_t>();
    return tables.const_data_ptr<int32_t>() + sequence[row] * tables.size(1);
  }
  bool counts(int64_t row) const { return sequences.const_data_ptr<int32_t>()[row] >= 0; }
  int64_t position(int64_t row) const { return positions.const_data_ptr<int32_t>()[row]; }

  const at::Tensor& keys;
  const at::Tensor& values;
  const at::Tensor& tables;
  const at::Tensor& sequences;
  const at::Tensor& positions;
  int64_t blocks, heads, dim, rows;
  at::ScalarType kind;
};

// Rows of heads: dense within a row, any distance between rows.
void check_rows(const at::Tensor& x, const Cache& cache, const char* name) {
  TORCH_CHECK(x.dim() == 3 && x.size(0) == cache.rows && x.size(2) == cache.dim &&
                  x.stride(2) == 1 && x.stride(1) == cache.dim && x.is_cpu() &&
                  x.scalar_type() == cache.kind,
              name, " of shape ", x.sizes(), ", strides ", x.strides(), " and type ",
              x.scalar_type(), " for ", cache.rows, " rows of a ", cache.kind, " cache of ",
              cache.dim, " dimensions");
}

template <typename T>
void write(const Cache& cache, const at::Tensor& k, const at::Tensor& v) {
  auto* keys = static_cast<T*>(cache.keys.mutable_data_ptr());
  auto* values = static_cast<T*>(cache.values.mutable_data_ptr());
  const auto* new_keys = static_cast<const T*>(k.const_data_ptr());
  const auto* new_values = static_cast<const T*>(v.const_data_ptr());
  const int64_t head_size = cache.dim * kBlockTokens;
  for (int64_t row = 0; row < cache.rows; ++row) {
    if (!cache.counts(row)) continue;
    const int64_t position = cache.position(row);
    const int64_t block = cache.table_of(row)[position / kBlockTokens];
    const int64_t within = position % kBlockTokens;
    for (int64_t head = 0; head < cache.heads; ++head) {
      const int64_t base = (block * cache.heads + head) * head_size;
      const T* key = new_keys + row * k.stride(0) + head * cache.dim;
      const T* value = new_values + row * v.stride(0) + head * cache.dim;
      for (int64_t d = 0; d < cache.dim; ++d) keys[base + d * kBlockTokens + within] = key[d];
      std::copy(value, value + cache.dim, values + base + within * cache.dim);
    }
  }
}

template <typename T>
void attend(const Cache& cache, const at::Tensor& q, const at::Tensor& out, int64_t window,
            double scale) {
  const int64_t query_heads = q.size(1), group = query_heads / cache.heads;
  const auto* queries = static_cast<const T*>(q.const_data_ptr());
  auto* outs = static_cast<T*>(out.mutable_data_ptr());
  const auto* keys = static_cast<const T*>(cache.keys.const_data_ptr());
  const auto* values = static_cast<const T*>(cache.values.const_data_ptr());
  const int64_t head_size = cache.dim * kBlockTokens;
  const auto run = kernel(cache.kind == at::kBFloat16);
  const int64_t most = cache.tables.size(1) * kBlockTokens;
  at::parallel_for(0, cache.rows * cache.heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(plumb::paged_scratch_floats(most, cache.dim));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / cache.heads, head = task % cache.heads;
      T* place = outs + row * query_heads * cache.dim + head * group * cache.dim;
      if (!cache.counts(row)) {
        std::fill(place, place + group * cache.dim, T(0.0f));
        continue;
      }
      const int64_t last = cache.position(row);
      PagedQuery query;
      query.query = queries + row * q.stride(0) + head * group * cache.dim;
      query.out = place;
      query.heads = group;
      query.dim = cache.dim;
      query.keys = keys + head * head_size;
      query.values = values + head * head_size;
      query.block_stride = cache.heads * head_size;
      query.table = cache.table_of(row);
      query.first = window > 0 && last >= window ? last - window + 1 : 0;
      query.last = last;
      query.scale = static_cast<float>(scale);
      query.scratch = scratch.data();
      run(query);
    }
  });
}

}  // namespace

extern "C" {

// Writes k and v, [N, K, D] with dense heads, where rows stand; a row of sequence -1 is left out.
char* plumb_paged_write(const at::Tensor* keys, const at::Tensor* values, const at::Tensor* tables,
                        const at::Tensor* sequences, const at::Tensor* positions,
                        const at::Tensor* k, const at::Tensor* v) {
  return plumb_guarded([&] {
    const Cache cache(*keys, *values, *tables, *sequences, *positions);
    check_rows(*k, cache, "new keys");
    check_rows(*v, cache, "new values");
    TORCH_CHECK(k->size(1) == cache.heads && v->size(1) == cache.heads, "keys of ", k->size(1),
                " and values of ", v->size(1), " heads in a cache of ", cache.heads);
    if (cache.kind == at::kFloat) {
      write<float>(cache, *k, *v);
    } else {
      write<at::BFloat16>(cache, *k, *v);
    }
  });
}

// out [N, Q, D] dense: each row's queries over the tokens up to its own, of the last `window` ones
// where window > 0. Rows of sequence -1 give zeros.
char* plumb_paged_attend(const at::Tensor* keys, const at::Tensor* values,
                         const at::Tensor* tables, const at::Tensor* sequences,
                         const at::Tensor* positions, const at::Tensor* q, const at::Tensor* out,
                         int64_t window, double scale) {
  return plumb_guarded([&] {
    const Cache cache(*keys, *values, *tables, *sequences, *positions);
    check_rows(*q, cache, "queries");
    check_rows(*out, cache, "the output");
    TORCH_CHECK(out->is_contiguous() && out->sizes() == q->sizes(), "an output of shape ",
                out->sizes(), " for queries of ", q->sizes());
    TORCH_CHECK(q->size(1) % cache.heads == 0, q->size(1), " query heads over ", cache.heads);
    if (cache.kind == at::kFloat) {
      attend<float>(cache, *q, *out, window, scale);
    } else {
      attend<at::BFloat16>(cache, *q, *out, window, scale);
    }
  });
}

}
