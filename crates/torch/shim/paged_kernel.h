// Attention of one new token to keys and values that lie in blocks: the plain part, which knows no
// libtorch. paged_kernel.cpp is compiled once for each instruction set; paged.cpp picks one.
//
// Layout of a layer's cache, B blocks of 16 tokens, K heads, D dimensions:
//   keys   [B, K, D, 16]   so that the scores of 16 tokens are one vector without a reduction
//   values [B, K, 16, D]   so that a weighted sum runs along D
#pragma once

#include <cstdint>

namespace plumb {

constexpr int64_t kBlockTokens = 16;

// The queries of one row that share a key/value head.
struct PagedQuery {
  const void* query;       // [heads, dim], dense
  void* out;               // [heads, dim], dense
  int64_t heads;
  int64_t dim;
  const void* keys;        // of block 0 and this head; a block further is `block_stride` further
  const void* values;
  int64_t block_stride;    // elements
  const int32_t* table;    // the sequence's blocks, in order
  int64_t first;           // oldest token that is seen
  int64_t last;            // the row's own token, in the cache already
  float scale;
  float* scratch;          // paged_scratch_floats()
};

inline int64_t paged_scratch_floats(int64_t tokens, int64_t dim) {
  const int64_t padded = (tokens / kBlockTokens + 2) * kBlockTokens;
  return 4 * (padded + 2 * dim);
}

using PagedKernel = void (*)(const PagedQuery&);

void paged_attend_f32_base(const PagedQuery& query);
void paged_attend_bf16_base(const PagedQuery& query);
void paged_attend_f32_avx2(const PagedQuery& query);
void paged_attend_bf16_avx2(const PagedQuery& query);
void paged_attend_f32_avx512(const PagedQuery& query);
void paged_attend_bf16_avx512(const PagedQuery& query);

}  // namespace plumb
