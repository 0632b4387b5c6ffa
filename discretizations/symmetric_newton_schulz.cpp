// Newton-Schulz iteration in bfloat16 for CPUs with AVX-512 bfloat16 instructions.
//
// Gram matrices and polynomials in them are symmetric, and only their blocks on and below the diagonal are computed;
// library products have no such form in bfloat16. Sums are in float32, each result is
// rounded to bfloat16 once, as in the library's products. A row of blocks is summed in one order whatever the number of
// threads, so results do not depend on it.
//
// Matrices are padded with zeros to whole blocks: the iteration maps zero rows and columns to themselves.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

using Half = uint16_t;  // bits of a bfloat16
constexpr int64_t kBlock = 32;
constexpr int64_t kRows = 8;  // rows of a register tile: 8 x 2 vectors of 16 sums hide the latency of the products

struct Team {  // threads that work on one matrix
  int64_t rank, size;
  void wait() const {
    if (size > 1) {
#pragma omp barrier
    }
  }
  // Columns of blocks in turn, forth and back, so that those of a triangle are shared evenly.
  bool owns(int64_t column) const {
    int64_t turn = column % (2 * size);
    return rank == (turn < size ? turn : 2 * size - 1 - turn);
  }
};

void transpose(__m512i (&r)[16]) {  // 16 x 16 numbers of 32 bits
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

__m512 widened(const Half* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

void narrowed(Half* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }

// One column of blocks of B as the products want it: for every pair of its rows, 32 pairs of numbers.
void pack(uint32_t* panel, const Half* b, int64_t ld, int64_t depth) {
  alignas(64) Half first[32], second[32];
  for (int i = 0; i < 32; ++i) {
    first[i] = Half(i / 2 + (i % 2) * 32);
    second[i] = Half(first[i] + 16);
  }
  __m512i low = _mm512_load_si512(first), high = _mm512_load_si512(second);
  for (int64_t k = 0; k < depth; k += 2, panel += kBlock) {
    __m512i even = _mm512_loadu_si512(b + k * ld), odd = _mm512_loadu_si512(b + (k + 1) * ld);
    _mm512_store_si512(panel, _mm512_permutex2var_epi16(even, low, odd));
    _mm512_store_si512(panel + 16, _mm512_permutex2var_epi16(even, high, odd));
  }
}

// The same of a transposed B: 32 of its rows.
void pack_transposed(uint32_t* panel, const Half* b, int64_t ld, int64_t depth) {
  for (int64_t half = 0; half < kBlock; half += 16)
    for (int64_t k = 0; k < depth; k += kBlock) {
      __m512i r[16];
      for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(b + (half + i) * ld + k);
      transpose(r);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(panel + (k / 2 + i) * kBlock + half, r[i]);
    }
}

void multiply(float* out, const Half* a, int64_t ld, const uint32_t* panel, int64_t depth) {
  __m512 sums[kRows][2];
  for (auto& row : sums) row[0] = row[1] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k += 2, panel += kBlock) {
    __m512bh left = (__m512bh)_mm512_load_si512(panel), right = (__m512bh)_mm512_load_si512(panel + 16);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      int32_t pair;
      std::memcpy(&pair, a + i * ld + k, sizeof pair);
      __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
      sums[i][0] = _mm512_dpbf16_ps(sums[i][0], left, both);
      sums[i][1] = _mm512_dpbf16_ps(sums[i][1], right, both);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int h = 0; h < 2; ++h) _mm512_store_ps(out + i * kBlock + 16 * h, sums[i][h]);
}

struct Term {
  float alpha = 1, beta = 0, gamma = 0;
};
enum class Kind { general, symmetric, gram };

// C <- alpha A B + beta D + gamma 1, D of the shape of C; for a Gram matrix B is the transpose of A, which has as many
// rows. Only general products may have C = D = B. Panel is this thread's own.
void product(Team team, Kind kind, Half* c, const Half* a, const Half* b, const Half* d, int64_t rows, int64_t columns,
             int64_t depth, Term term, uint32_t* panel) {
  bool half = kind != Kind::general;
  int64_t ld = columns;
  for (int64_t j = 0; j < columns; j += kBlock) {
    if (!team.owns(j / kBlock)) continue;
    if (kind == Kind::gram)
      pack_transposed(panel, b + j * depth, depth, depth);
    else
      pack(panel, b + j, ld, depth);
    for (int64_t i = half ? j : 0; i < rows; i += kBlock) {
      alignas(64) float sums[kBlock * kBlock];
      for (int64_t r = 0; r < kBlock; r += kRows)
        multiply(sums + r * kBlock, a + (i + r) * depth, depth, panel, depth);
      for (int64_t r = 0; r < kBlock; ++r)
        for (int64_t h = 0; h < kBlock; h += 16) {
          int64_t at = (i + r) * ld + j + h;
          __m512 x = _mm512_mul_ps(_mm512_set1_ps(term.alpha), _mm512_load_ps(sums + r * kBlock + h));
          if (term.beta != 0) x = _mm512_fmadd_ps(_mm512_set1_ps(term.beta), widened(d + at), x);
          _mm512_store_ps(sums + r * kBlock + h, x);
        }
      if (term.gamma != 0 && i == j)
        for (int64_t r = 0; r < kBlock; ++r) sums[r * (kBlock + 1)] += term.gamma;
      for (int64_t r = 0; r < kBlock; ++r)
        for (int64_t h = 0; h < kBlock; h += 16)
          narrowed(c + (i + r) * ld + j + h, _mm512_load_ps(sums + r * kBlock + h));
      if (!half || i == j) continue;
      for (int64_t r = 0; r < kBlock; r += 16)
        for (int64_t h = 0; h < kBlock; h += 16) {
          __m512i x[16];
          for (int t = 0; t < 16; ++t) x[t] = _mm512_load_si512(sums + (r + t) * kBlock + h);
          transpose(x);
          for (int t = 0; t < 16; ++t) narrowed(c + (j + h + t) * ld + i + r, _mm512_castsi512_ps(x[t]));
        }
    }
  }
  team.wait();
}

// Rows of x over the divisor; of its transpose where x is tall.
void load(Team team, Half* y, const Half* x, float divisor, int64_t rows, int64_t columns, bool tall, int64_t padded_rows,
          int64_t padded_columns) {
  __m512 by = _mm512_set1_ps(divisor);
  for (int64_t j = 0; j < padded_rows; j += kBlock) {
    if (!team.owns(j / kBlock)) continue;
    std::memset(y + j * padded_columns, 0, kBlock * padded_columns * sizeof(Half));
    int64_t stop = std::min(j + kBlock, rows);
    if (!tall) {
      for (int64_t i = j; i < stop; ++i)
        for (int64_t k = 0; k < columns; k += 16) {
          if (k + 16 <= columns) {
            narrowed(y + i * padded_columns + k, _mm512_div_ps(widened(x + i * columns + k), by));
            continue;
          }
          int64_t count = std::min<int64_t>(16, columns - k);
          alignas(64) Half part[16] = {};
          std::memcpy(part, x + i * columns + k, count * sizeof(Half));
          narrowed(part, _mm512_div_ps(widened(part), by));
          std::memcpy(y + i * padded_columns + k, part, count * sizeof(Half));
        }
      continue;
    }
    for (int64_t k = 0; k < columns; k += 16)
      for (int64_t i = j; i < stop; i += 16) {
        alignas(64) Half part[16] = {};
        __m512i r[16] = {};
        int64_t across = std::min<int64_t>(16, stop - i), down = std::min<int64_t>(16, columns - k);
        for (int64_t t = 0; t < down; ++t) {
          std::memcpy(part, x + (k + t) * rows + i, across * sizeof(Half));
          r[t] = _mm512_castps_si512(_mm512_div_ps(widened(part), by));
        }
        transpose(r);
        for (int64_t t = 0; t < across; ++t) narrowed(y + (i + t) * padded_columns + k, _mm512_castsi512_ps(r[t]));
      }
  }
  team.wait();
}

void unload(Team team, Half* out, const Half* y, int64_t rows, int64_t columns, bool tall, int64_t padded_columns) {
  for (int64_t j = 0; j < columns; j += kBlock) {
    if (!team.owns(j / kBlock)) continue;
    int64_t stop = std::min(j + kBlock, columns);
    if (!tall) {
      for (int64_t i = 0; i < rows; ++i)
        std::memcpy(out + i * columns + j, y + i * padded_columns + j, (stop - j) * sizeof(Half));
      continue;
    }
    for (int64_t i = 0; i < rows; i += 16)
      for (int64_t k = j; k < stop; k += 16) {
        alignas(64) Half part[16] = {};
        __m512i r[16];
        int64_t across = std::min<int64_t>(16, rows - i), down = std::min<int64_t>(16, stop - k);
        for (int64_t t = 0; t < 16; ++t)  // rows beyond the last one are padding
          r[t] = _mm512_castps_si512(widened(y + (i + t) * padded_columns + k));
        transpose(r);
        for (int64_t t = 0; t < down; ++t) {
          narrowed(part, _mm512_castsi512_ps(r[t]));
          std::memcpy(out + (k + t) * rows + i, part, across * sizeof(Half));
        }
      }
  }
  team.wait();
}

void iterate(Team team, Half* out, const Half* x, float divisor, int64_t m, int64_t n, const float* coefficients,
             int64_t steps, int64_t pairs, Half* work, uint32_t* panel) {
  bool tall = m > n;
  int64_t rows = std::min(m, n), columns = std::max(m, n);
  int64_t side = (rows + kBlock - 1) / kBlock * kBlock, wide = (columns + kBlock - 1) / kBlock * kBlock;
  Half *y = work, *g = y + side * wide, *p = g + side * side, *t = p + side * side;
  load(team, y, x, divisor, rows, columns, tall, side, wide);
  auto symmetric = [&](Half* c, const Half* a, const Half* b, Term term = {}) {
    product(team, Kind::symmetric, c, a, b, a, side, side, side, term, panel);
  };
  for (int64_t step = 0; step < steps; ++step, coefficients += 3) {
    product(team, Kind::gram, g, y, y, g, side, side, wide, {}, panel);
    float a = coefficients[0], b = coefficients[1], c = coefficients[2];
    if (step < 2 * pairs) {  // two steps on the Gram matrix: y <- q p y, p = p1(g), q = p2(p g p)
      symmetric(p, g, g, {c, b, a});
      // p g as it stands: rounded p and g do not commute, and p g p must be that of the rounded p, else q p, a small
      // difference of large numbers, overflows.
      product(team, Kind::general, t, p, g, p, side, side, side, {}, panel);
      symmetric(g, t, p);
      ++step, coefficients += 3;
      symmetric(t, g, g, {coefficients[2], coefficients[1], coefficients[0]});
      symmetric(g, t, p);
      product(team, Kind::general, y, g, y, y, side, wide, side, {}, panel);
    } else {
      symmetric(p, g, g, {c, b, 0});
      product(team, Kind::general, y, p, y, y, side, wide, side, {1, a, 0}, panel);
    }
  }
  unload(team, out, y, rows, columns, tall, wide);
}

}  // namespace

// batch matrices m x n; work holds `parts` matrices' buffers, panels those of `threads`.
extern "C" void newton_schulz(Half* out, const Half* x, const float* divisors, int64_t batch, int64_t m, int64_t n,
                              const float* coefficients, int64_t steps, int64_t pairs, Half* work, int64_t work_size,
                              uint32_t* panels, int64_t panel_size, int64_t threads) {
#pragma omp parallel num_threads(int(threads))
  {
    int64_t thread = omp_get_thread_num(), size = omp_get_num_threads(), whole = batch / size * size;
    uint32_t* panel = panels + thread * panel_size;
    for (int64_t i = thread; i < whole; i += size)
      iterate({0, 1}, out + i * m * n, x + i * m * n, divisors[i], m, n, coefficients, steps, pairs,
              work + thread * work_size, panel);
    if (size > 1) {
#pragma omp barrier
    }
    for (int64_t i = whole; i < batch; ++i)  // fewer matrices than threads: all work on each
      iterate({thread, size}, out + i * m * n, x + i * m * n, divisors[i], m, n, coefficients, steps, pairs, work, panel);
  }
}
