// Matrix products in bfloat16 for CPUs with AVX-512 bfloat16 instructions: Newton-Schulz iteration, and products with few
// columns.
//
// Gram matrices and polynomials in them are symmetric, and only their blocks on and below the diagonal are computed;
// the library has no such products in bfloat16. Sums are in float32, and each result
// is rounded to bfloat16 once, as in the library's products. A row of blocks is summed in a fixed order, so results do
// not depend on the number of threads.
//
// Matrices are padded with zeros to whole blocks: the iteration maps zero rows and columns to themselves.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

using Half = uint16_t;  // bits of a bfloat16
constexpr int64_t kBlock = 32;
constexpr int64_t kRows = 8;  // rows of a register tile: 8 x 2 vectors of 16 sums hide the latency of the products

int64_t padded(int64_t length) { return (length + kBlock - 1) / kBlock * kBlock; }

struct Team {  // threads that work on one matrix
  int64_t rank, size;
  void wait() const {
    if (size > 1) {
#pragma omp barrier
    }
  }
  // Columns of blocks, dealt out forth and back, so that a triangle is divided evenly.
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

__m512 widened(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

__m512 widened(const Half* p) { return widened(_mm256_loadu_si256((const __m256i*)p)); }

void narrowed(Half* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }

// Pairs of numbers, one from each of two rows, from a column on.
__m512i interleaving(int column) {
  alignas(64) Half places[32];
  for (int i = 0; i < 32; ++i) places[i] = Half(column + i / 2 + (i % 2) * 32);
  return _mm512_load_si512(places);
}

// One column of blocks of B in the layout that the products need: for every pair of its rows, 32 pairs of numbers.
void pack(uint32_t* panel, const Half* b, int64_t ld, int64_t depth) {
  __m512i low = interleaving(0), high = interleaving(16);
  for (int64_t k = 0; k < depth; k += 2, panel += kBlock) {
    __m512i even = _mm512_loadu_si512(b + k * ld), odd = _mm512_loadu_si512(b + (k + 1) * ld);
    _mm512_store_si512(panel, _mm512_permutex2var_epi16(even, low, odd));
    _mm512_store_si512(panel + 16, _mm512_permutex2var_epi16(even, high, odd));
  }
}

// The same layout for a transposed B: 32 of its rows.
void pack_transposed(uint32_t* panel, const Half* b, int64_t ld, int64_t depth) {
  for (int64_t half = 0; half < kBlock; half += 16)
    for (int64_t k = 0; k < depth; k += kBlock) {
      __m512i r[16];
      for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(b + (half + i) * ld + k);
      transpose(r);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(panel + (k / 2 + i) * kBlock + half, r[i]);
    }
}

struct Term {
  float alpha = 1, beta = 0, gamma = 0;
};

// Rows x 16 Vectors numbers of C <- alpha A B + beta D, in registers until they are rounded. On a diagonal block, in
// which this tile starts at row `diagonal`, gamma is added to the diagonal.
template <int Rows, int Vectors, class Out>
void tile(Out* c, const Half* d, int64_t ld, const Half* a, const uint32_t* panel, int64_t depth, Term term,
          int diagonal) {
  __m512 sums[Rows][Vectors];
  for (auto& row : sums)
    for (auto& x : row) x = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k += 2, panel += kBlock) {
    __m512bh b[Vectors];
    for (int h = 0; h < Vectors; ++h) b[h] = (__m512bh)_mm512_load_si512(panel + 16 * h);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      int32_t pair;
      std::memcpy(&pair, a + i * depth + k, sizeof pair);
      __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
      for (int h = 0; h < Vectors; ++h) sums[i][h] = _mm512_dpbf16_ps(sums[i][h], b[h], both);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    if constexpr (std::is_same_v<Out, float>) {  // A B only, not rounded
      for (int h = 0; h < Vectors; ++h) _mm512_storeu_ps(c + i * ld + 16 * h, sums[i][h]);
      continue;
    }
    for (int h = 0; h < Vectors; ++h) {
      __m512 x = _mm512_mul_ps(_mm512_set1_ps(term.alpha), sums[i][h]);
      if (term.beta != 0) x = _mm512_fmadd_ps(_mm512_set1_ps(term.beta), widened(d + i * ld + 16 * h), x);
      if (term.gamma != 0 && diagonal >= 0) {
        int at = diagonal + i - 16 * h;
        x = _mm512_mask_add_ps(x, at >= 0 && at < 16 ? __mmask16(1 << at) : __mmask16(0), x, _mm512_set1_ps(term.gamma));
      }
      sums[i][h] = x;
    }
    if constexpr (Vectors == 2)
      _mm512_storeu_si512((Half*)c + i * ld, (__m512i)_mm512_cvtne2ps_pbh(sums[i][1], sums[i][0]));
    else
      narrowed((Half*)c + i * ld, sums[i][0]);
  }
}

// The transpose of a block.
void mirror(Half* to, int64_t to_ld, const Half* from, int64_t from_ld) {
  __m512i low = interleaving(0), high = interleaving(16), r[2][16];
  for (int i = 0; i < 16; ++i) {
    __m512i even = _mm512_loadu_si512(from + 2 * i * from_ld), odd = _mm512_loadu_si512(from + (2 * i + 1) * from_ld);
    r[0][i] = _mm512_permutex2var_epi16(even, low, odd);
    r[1][i] = _mm512_permutex2var_epi16(even, high, odd);
  }
  for (int h = 0; h < 2; ++h) {
    transpose(r[h]);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (16 * h + i) * to_ld, r[h][i]);
  }
}

// Copy the part below the diagonal tiles of a diagonal block to the part above them.
void mirror_corner(Half* block, int64_t ld) {
  __m512i r[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(block + (16 + i) * ld)));
  transpose(r);
  for (int i = 0; i < 16; ++i) _mm256_storeu_si256((__m256i*)(block + i * ld + 16), _mm512_cvtepi32_epi16(r[i]));
}

enum class Kind { general, symmetric, gram };

// C <- alpha A B + beta D + gamma 1, where D has the shape of C; for a Gram matrix B is the transpose of A, which has as
// many rows. Only general products may have C = D = B. The panel belongs to this thread.
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
    int64_t i = 0;
    if (half) {
      Half* block = c + j * ld + j;
      const Half *rest = d + j * ld + j, *left = a + j * depth;
      tile<16, 1>(block, rest, ld, left, panel, depth, term, 0);
      for (int r = 16; r < kBlock; r += kRows)
        tile<kRows, 2>(block + r * ld, rest + r * ld, ld, left + r * depth, panel, depth, term, r);
      mirror_corner(block, ld);
      i = j + kBlock;
    }
    for (; i < rows; i += kBlock) {
      for (int64_t r = i; r < i + kBlock; r += kRows)
        tile<kRows, 2>(c + r * ld + j, d + r * ld + j, ld, a + r * depth, panel, depth, term, i == j ? int(r - i) : -1);
      if (half) mirror(c + j * ld + i, ld, c + i * ld + j, ld);
    }
  }
  team.wait();
}

__mmask32 first(int64_t count) {  // numbers of a row
  return count >= kBlock ? ~__mmask32(0) : count <= 0 ? __mmask32(0) : (__mmask32(1) << count) - 1;
}

// The Frobenius norm, summed in a fixed order for any number of threads.
float norm(const Half* x, int64_t count) {
  __m512 sums[8];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 128 <= count; i += 128)
    for (int k = 0; k < 8; ++k) {
      __m512 part = widened(x + i + 16 * k);
      sums[k] = _mm512_fmadd_ps(part, part, sums[k]);
    }
  for (; i < count; i += kBlock) {
    __m512i rest = _mm512_maskz_loadu_epi16(first(count - i), x + i);
    for (int h = 0; h < 2; ++h) {
      __m512 part = widened(h ? _mm512_extracti64x4_epi64(rest, 1) : _mm512_castsi512_si256(rest));
      sums[h] = _mm512_fmadd_ps(part, part, sums[h]);
    }
  }
  for (int k = 4; k > 0; k /= 2)
    for (int h = 0; h < k; ++h) sums[h] = _mm512_add_ps(sums[h], sums[h + k]);
  return std::sqrt(_mm512_reduce_add_ps(sums[0]));
}

// x over the divisor, or its transpose, padded.
void load(Team team, Half* y, const Half* x, float divisor, int64_t m, int64_t n, int64_t wide, bool transposed) {
  __m512 by = _mm512_set1_ps(divisor);
  for (int64_t i = 0; i < m; i += kBlock) {
    if (!team.owns(i / kBlock)) continue;
    for (int64_t j = 0; j < n; j += kBlock) {
      alignas(64) Half block[kBlock * kBlock];
      Half* to = transposed ? block : y + i * wide + j;
      int64_t ld = transposed ? kBlock : wide;
      for (int64_t r = 0; r < kBlock; ++r) {
        __m512i row = _mm512_maskz_loadu_epi16(i + r < m ? first(n - j) : 0, x + (i + r) * n + j);
        __m512 low = _mm512_div_ps(widened(_mm512_castsi512_si256(row)), by);
        __m512 high = _mm512_div_ps(widened(_mm512_extracti64x4_epi64(row, 1)), by);
        _mm512_storeu_si512(to + r * ld, (__m512i)_mm512_cvtne2ps_pbh(high, low));
      }
      if (transposed) mirror(y + j * wide + i, wide, block, kBlock);
    }
  }
  team.wait();
}

void unload(Team team, Half* out, const Half* y, int64_t m, int64_t n, int64_t wide) {
  for (int64_t i = 0; i < m; i += kBlock) {
    if (!team.owns(i / kBlock)) continue;
    for (int64_t j = 0; j < n; j += kBlock) {
      alignas(64) Half block[kBlock * kBlock];
      if (m > n) mirror(block, kBlock, y + j * wide + i, wide);
      const Half* from = m > n ? block : y + i * wide + j;
      int64_t ld = m > n ? kBlock : wide;
      for (int64_t r = 0; r < std::min(kBlock, m - i); ++r)
        _mm512_mask_storeu_epi16(out + (i + r) * n + j, first(n - j), _mm512_loadu_si512(from + r * ld));
    }
  }
  team.wait();
}

void iterate(Team team, Half* out, const Half* x, int64_t m, int64_t n, float safety, float floor, float smallest,
             const float* coefficients, int64_t steps, int64_t pairs, Half* work, uint32_t* panel) {
  int64_t rows = std::min(m, n), columns = std::max(m, n);
  int64_t side = padded(rows), wide = padded(columns);
  Half *y = work, *g = y + side * wide, *p = g + side * side, *t = p + side * side;
  load(team, y, x, std::max(safety * norm(x, m * n) + floor, smallest), m, n, wide, m > n);
  auto symmetric = [&](Half* c, const Half* a, const Half* b, Term term = {}) {
    product(team, Kind::symmetric, c, a, b, a, side, side, side, term, panel);
  };
  for (int64_t step = 0; step < steps; ++step, coefficients += 3) {
    product(team, Kind::gram, g, y, y, g, side, side, wide, {}, panel);
    float a = coefficients[0], b = coefficients[1], c = coefficients[2];
    if (step < 2 * pairs) {  // two steps on the Gram matrix: y <- q p y, p = p1(g), q = p2(p g p)
      symmetric(p, g, g, {c, b, a});
      // p g is not symmetrised: rounded p and g do not commute, and p g p must use the rounded p; otherwise q p, a
      // small difference of large numbers, overflows.
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
  unload(team, out, y, m, n, wide);
}

// The transpose of n x k numbers, rounded and padded.
void load_columns(Team team, Half* y, const float* v, int64_t n, int64_t k, int64_t wide) {
  for (int64_t i = 0; i < n; i += kBlock) {
    if (!team.owns(i / kBlock)) continue;
    for (int64_t j = 0; j < k; j += kBlock) {
      alignas(64) Half block[kBlock * kBlock];
      for (int64_t r = 0; r < kBlock; ++r) {
        __mmask32 mask = i + r < n ? first(k - j) : 0;
        const float* from = v + (i + r) * k + j;
        __m512 low = _mm512_maskz_loadu_ps(__mmask16(mask), from);
        __m512 high = _mm512_maskz_loadu_ps(__mmask16(mask >> 16), from + 16);
        _mm512_store_si512(block + r * kBlock, (__m512i)_mm512_cvtne2ps_pbh(high, low));
      }
      mirror(y + j * wide + i, wide, block, kBlock);
    }
  }
  team.wait();
}

// C <- A B for A with few rows; B may be given as its transpose.
template <class Out>
void few_rows(Team team, Out* c, const Half* a, const Half* b, bool transposed, int64_t rows, int64_t columns,
              int64_t depth, uint32_t* panel) {
  for (int64_t j = 0; j < columns; j += kBlock) {
    if (!team.owns(j / kBlock)) continue;
    if (transposed)
      pack_transposed(panel, b + j * depth, depth, depth);
    else
      pack(panel, b + j, columns, depth);
    for (int64_t i = 0; i < rows; i += kRows)
      tile<kRows, 2>(c + i * columns + j, (const Half*)nullptr, columns, a + i * depth, panel, depth, {}, -1);
  }
  team.wait();
}

// With x over a power of two near its norm: (x v)^T (x v), or (x^T (x v))^T.
void project(Team team, float* out, const Half* x, const float* v, int64_t m, int64_t n, int64_t k, bool gram,
             Half* work, uint32_t* panel) {
  int64_t tall = padded(m), wide = padded(n), columns = padded(k), rows = (k + kRows - 1) / kRows * kRows;
  Half *y = work, *vt = y + tall * wide, *image = vt + columns * wide;
  float size = norm(x, m * n);
  load(team, y, x, std::isnormal(size) ? std::ldexp(1.0f, std::ilogb(size) + 1) : 1.0f, m, n, wide, false);
  load_columns(team, vt, v, n, k, wide);
  if (gram && team.rank == 0) std::memset(image + rows * tall, 0, (columns - rows) * tall * sizeof(Half));
  few_rows(team, image, vt, y, true, rows, tall, wide, panel);
  if (gram)
    few_rows(team, out, image, image, true, columns, columns, tall, panel);
  else
    few_rows(team, out, image, y, false, rows, wide, tall, panel);
}

// Each thread takes a whole matrix while there are enough; the remaining ones are computed by all threads together.
template <class Call>
void each_matrix(int64_t batch, int64_t threads, Call call) {
#pragma omp parallel num_threads(int(threads))
  {
    int64_t thread = omp_get_thread_num(), size = omp_get_num_threads(), whole = batch / size * size;
    for (int64_t i = thread; i < whole; i += size) call(Team{0, 1}, i, thread, thread);
    if (size > 1) {
#pragma omp barrier
    }
    for (int64_t i = whole; i < batch; ++i) call(Team{thread, size}, i, thread, 0);
  }
}

}  // namespace

// batch matrices m x n, each divided by max(safety |x| + floor, smallest). Each thread has a part of `work` for a
// matrix's buffers (the first part if all threads work on one matrix), and a part of `panels`.
extern "C" void newton_schulz(Half* out, const Half* x, int64_t batch, int64_t m, int64_t n, float safety, float floor,
                              float smallest, const float* coefficients, int64_t steps, int64_t pairs, Half* work,
                              int64_t work_size, uint32_t* panels, int64_t panel_size, int64_t threads) {
  each_matrix(batch, threads, [&](Team team, int64_t i, int64_t thread, int64_t part) {
    iterate(team, out + i * m * n, x + i * m * n, m, n, safety, floor, smallest, coefficients, steps, pairs,
            work + part * work_size, panels + thread * panel_size);
  });
}

// v is n x k for each of batch matrices m x n; see `project`. Rows and columns of the results are padded.
extern "C" void gram_product(float* out, int64_t out_size, const Half* x, const float* v, int64_t batch, int64_t m,
                            int64_t n, int64_t k, int64_t gram, Half* work, int64_t work_size, uint32_t* panels,
                            int64_t panel_size, int64_t threads) {
  each_matrix(batch, threads, [&](Team team, int64_t i, int64_t thread, int64_t part) {
    project(team, out + i * out_size, x + i * m * n, v + i * n * k, m, n, k, gram, work + part * work_size,
            panels + thread * panel_size);
  });
}
