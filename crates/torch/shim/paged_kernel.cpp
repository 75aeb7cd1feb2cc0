// See paged_kernel.h. PLUMB_ISA names the instruction set in the functions' names.
//
// Everything is computed in f32 and in an order that depends on the row alone, so a row's result
// does not hang on the rows beside it.
#include "paged_kernel.h"

#include <cstring>

#ifndef PLUMB_ISA
#define PLUMB_ISA base
#endif
#define PLUMB_JOIN(a, b) a##b
#define PLUMB_NAMED(a, b) PLUMB_JOIN(a, b)

namespace plumb {
namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

constexpr int kLanes = 16;

struct F32 {
  using Element = float;
  static inline Floats load(const float* from) {
    Floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  static inline float get(float value) { return value; }
  static inline void put(float* to, float value) { *to = value; }
};

struct Bf16 {
  using Element = uint16_t;
  static inline Floats load(const uint16_t* from) {
    Halves half;
    std::memcpy(&half, from, sizeof half);
    const Words wide = __builtin_convertvector(half, Words) << 16;
    Floats value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  static inline float get(uint16_t half) {
    const uint32_t wide = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  // To the nearest, ties to even; not-a-number stays one.
  static inline void put(uint16_t* to, float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    *to = value != value ? 0x7FC0 : static_cast<uint16_t>((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
  }
};

inline Floats all(float value) { return value - Floats{}; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// e^x for x <= 0, relative error below 2e-7; 0 below -87. Cody-Waite reduction and a polynomial of
// degree 7 in what is left.
inline Floats exp_of(Floats x) {
  const Floats bounded = larger(x, all(-87.0f));
  const Floats shifted = bounded * 1.44269504088896341f + 12582912.0f;
  const Floats whole = shifted - 12582912.0f;
  Floats rest = bounded - whole * 0.693359375f;
  rest = rest + whole * 2.12194440e-4f;
  Floats y = all(1.98412698e-4f);
  y = y * rest + 1.38888889e-3f;
  y = y * rest + 8.33333333e-3f;
  y = y * rest + 4.16666667e-2f;
  y = y * rest + 1.66666667e-1f;
  y = y * rest + 0.5f;
  y = y * rest + 1.0f;
  y = y * rest + 1.0f;
  const Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &power, sizeof scale);
  return x < all(-87.0f) ? Floats{} : y * scale;
}

inline float sum_of(Floats value) {
  float sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) sum += value[lane];
  return sum;
}

inline float largest_of(Floats value) {
  float most = value[0];
  for (int lane = 1; lane < kLanes; ++lane) most = value[lane] > most ? value[lane] : most;
  return most;
}

// Scores of `Heads` queries with every token of the blocks, -inf where a token is not seen; returns
// through `most` the largest score of each query.
template <typename Type, int Heads>
inline void score(const PagedQuery& q, const float* queries, float* scores, int64_t width,
                  float* most) {
  const auto* keys = static_cast<const typename Type::Element*>(q.keys);
  const int64_t first_block = q.first / kBlockTokens, last_block = q.last / kBlockTokens;
  const Floats none = all(-__builtin_inff());
  Floats best[Heads];
  for (int h = 0; h < Heads; ++h) best[h] = none;
  for (int64_t block = first_block; block <= last_block; ++block) {
    const auto* key = keys + q.table[block] * q.block_stride;
    Floats even[Heads] = {}, odd[Heads] = {};
    int64_t d = 0;
    for (; d + 1 < q.dim; d += 2) {
      const Floats a = Type::load(key + d * kLanes);
      const Floats b = Type::load(key + (d + 1) * kLanes);
      for (int h = 0; h < Heads; ++h) {
        even[h] += queries[h * q.dim + d] * a;
        odd[h] += queries[h * q.dim + d + 1] * b;
      }
    }
    if (d < q.dim) {
      const Floats a = Type::load(key + d * kLanes);
      for (int h = 0; h < Heads; ++h) even[h] += queries[h * q.dim + d] * a;
    }
    const int64_t from = block * kBlockTokens;
    float* place = scores + (block - first_block) * kLanes;
    const bool whole = from >= q.first && from + kLanes - 1 <= q.last;
    for (int h = 0; h < Heads; ++h) {
      Floats row = even[h] + odd[h];
      if (!whole) {
        for (int lane = 0; lane < kLanes; ++lane) {
          if (from + lane < q.first || from + lane > q.last) row[lane] = -__builtin_inff();
        }
      }
      best[h] = larger(row, best[h]);
      std::memcpy(place + h * width, &row, sizeof row);
    }
  }
  for (int h = 0; h < Heads; ++h) most[h] = largest_of(best[h]);
}

// Adds `Vectors` vectors of every seen token's values, weighted, to `out`.
template <typename Type, int Heads, int Vectors>
inline void mix(const PagedQuery& q, const float* weights, int64_t width, int64_t d,
                const float* inverse, typename Type::Element* out) {
  const auto* values = static_cast<const typename Type::Element*>(q.values);
  const int64_t first_block = q.first / kBlockTokens, last_block = q.last / kBlockTokens;
  Floats sum[Heads][Vectors] = {};
  for (int64_t block = first_block; block <= last_block; ++block) {
    const auto* value = values + q.table[block] * q.block_stride + d;
    const int64_t from = block * kBlockTokens;
    const int64_t begin = q.first > from ? q.first - from : 0;
    const int64_t end = q.last - from < kLanes - 1 ? q.last - from : kLanes - 1;
    const float* weight = weights + (block - first_block) * kLanes;
    for (int64_t token = begin; token <= end; ++token) {
      Floats row[Vectors];
      for (int v = 0; v < Vectors; ++v) row[v] = Type::load(value + token * q.dim + v * kLanes);
      for (int h = 0; h < Heads; ++h) {
        const float w = weight[h * width + token];
        for (int v = 0; v < Vectors; ++v) sum[h][v] += w * row[v];
      }
    }
  }
  for (int h = 0; h < Heads; ++h) {
    for (int v = 0; v < Vectors; ++v) {
      const Floats row = sum[h][v] * inverse[h];
      for (int lane = 0; lane < kLanes; ++lane) {
        Type::put(out + h * q.dim + d + v * kLanes + lane, row[lane]);
      }
    }
  }
}

// The same for so few dimensions that they do not fill a vector.
template <typename Type, int Heads>
inline void mix_rest(const PagedQuery& q, const float* weights, int64_t width, int64_t d,
                     const float* inverse, typename Type::Element* out) {
  const auto* values = static_cast<const typename Type::Element*>(q.values);
  const int64_t first_block = q.first / kBlockTokens;
  for (; d < q.dim; ++d) {
    for (int h = 0; h < Heads; ++h) {
      float sum = 0.0f;
      for (int64_t token = q.first; token <= q.last; ++token) {
        const int64_t block = token / kBlockTokens, within = token % kBlockTokens;
        const auto* value = values + q.table[block] * q.block_stride;
        sum += weights[h * width + token - first_block * kBlockTokens] *
               Type::get(value[within * q.dim + d]);
      }
      Type::put(out + h * q.dim + d, sum * inverse[h]);
    }
  }
}

template <typename Type, int Heads>
void attend_heads(const PagedQuery& q, const typename Type::Element* query,
                  typename Type::Element* out) {
  const int64_t blocks = q.last / kBlockTokens - q.first / kBlockTokens + 1;
  const int64_t width = blocks * kBlockTokens;
  float* queries = q.scratch;
  float* scores = q.scratch + Heads * q.dim;
  for (int64_t i = 0; i < Heads * q.dim; ++i) queries[i] = Type::get(query[i]) * q.scale;
  float most[Heads], inverse[Heads];
  score<Type, Heads>(q, queries, scores, width, most);
  for (int h = 0; h < Heads; ++h) {
    Floats total = {};
    for (int64_t t = 0; t < width; t += kLanes) {
      const Floats weight = exp_of(F32::load(scores + h * width + t) - most[h]);
      total += weight;
      std::memcpy(scores + h * width + t, &weight, sizeof weight);
    }
    inverse[h] = 1.0f / sum_of(total);
  }
  int64_t d = 0;
  for (; d + 4 * kLanes <= q.dim; d += 4 * kLanes) {
    mix<Type, Heads, 4>(q, scores, width, d, inverse, out);
  }
  if (d + 2 * kLanes <= q.dim) {
    mix<Type, Heads, 2>(q, scores, width, d, inverse, out);
    d += 2 * kLanes;
  }
  if (d + kLanes <= q.dim) {
    mix<Type, Heads, 1>(q, scores, width, d, inverse, out);
    d += kLanes;
  }
  if (d == q.dim) return;
  if (d > 0) {
    // The last vector overlaps the one before; what both write is the same.
    mix<Type, Heads, 1>(q, scores, width, q.dim - kLanes, inverse, out);
  } else {
    mix_rest<Type, Heads>(q, scores, width, d, inverse, out);
  }
}

template <typename Type>
inline void attend(const PagedQuery& q) {
  const auto* query = static_cast<const typename Type::Element*>(q.query);
  auto* out = static_cast<typename Type::Element*>(q.out);
  int64_t head = 0;
  for (; head + 4 <= q.heads; head += 4) {
    attend_heads<Type, 4>(q, query + head * q.dim, out + head * q.dim);
  }
  const auto* rest = query + head * q.dim;
  auto* rest_out = out + head * q.dim;
  switch (q.heads - head) {
    case 3: attend_heads<Type, 3>(q, rest, rest_out); break;
    case 2: attend_heads<Type, 2>(q, rest, rest_out); break;
    case 1: attend_heads<Type, 1>(q, rest, rest_out); break;
    default: break;
  }
}

}  // namespace

void PLUMB_NAMED(paged_attend_f32_, PLUMB_ISA)(const PagedQuery& query) { attend<F32>(query); }

void PLUMB_NAMED(paged_attend_bf16_, PLUMB_ISA)(const PagedQuery& query) { attend<Bf16>(query); }

}  // namespace plumb
