// The elementwise formulas of Muon-LITE, each in one pass over memory. The loops are plain, so that the compiler
// vectorises them; arithmetic is in float32.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Half {  // a bfloat16
  uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(Half x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline void set(float& to, float x) { to = x; }
inline void set(Half& to, float x) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = uint16_t(x == x ? rounded : 0x7fc0);
}

template <class T>
float as(float x) {
  T result;
  set(result, x);
  return wide(result);
}

// Rows of `count` matrices, shared among threads.
template <class Row>
void each_row(int64_t count, int64_t rows, int64_t threads, Row row) {
#pragma omp parallel for schedule(static) num_threads(int(threads))
  for (int64_t i = 0; i < count * rows; ++i) row(i / rows, i % rows);
}

template <bool Usable, class M, class G>
void covector_row(M* __restrict m, const G* __restrict g, Half* __restrict covector, Half* __restrict gradient,
                  int64_t n, float rate, float nesterov) {
  bool is_near = rate < 0.5f;  // as torch's lerp, which is exact at both ends
  float weight = is_near ? rate : rate - 1;
  for (int64_t i = 0; i < n; ++i) {
    float x = Usable ? as<M>(wide(g[i])) : 0.0f, old = wide(m[i]);
    float next = as<M>(std::fma(weight, x - old, is_near ? old : x));
    set(covector[i], as<M>(std::fma(nesterov, x, next)));
    if (gradient) set(gradient[i], x);
    if (Usable) set(m[i], next);
  }
}

template <class P>
void split_row(Half* __restrict a, const Half* __restrict d, Half* __restrict extra, const P* __restrict w, int64_t n,
               float decay, float chi_sharp, float beta_sharp, float flat_base, float flat_d) {
  for (int64_t i = 0; i < n; ++i) {
    float base = w ? std::fma(decay, wide(w[i]), wide(a[i])) : wide(a[i]), damping = d ? wide(d[i]) : 0.0f;
    float flat = flat_base * base + flat_d * damping;
    set(extra[i], flat);
    set(a[i], chi_sharp * (base + beta_sharp * damping) + flat);
  }
}

template <class P>
void move_row(P* __restrict w, const Half* __restrict u, int64_t n, float size, float decay) {
  for (int64_t i = 0; i < n; ++i) {
    float x = wide(w[i]);
    set(w[i], std::fma(size, wide(u[i]), std::fma(decay, x, x)));
  }
}

template <class Call>
void with_type(int64_t is_half, Call call) {
  if (is_half)
    call(Half{});
  else
    call(float{});
}

}  // namespace

// Pointers and row strides of `count` matrices rows x n; batches are contiguous.

extern "C" void muon_covectors(void* const* m, const int64_t* m_strides, int64_t m_half, void* const* g,
                               const int64_t* g_strides, int64_t g_half, Half* covector, Half* gradient,
                               const bool* usable, int64_t count, int64_t rows, int64_t n, double rate, double nesterov,
                               int64_t threads) {
  bool is_usable = !usable || *usable;
  with_type(m_half, [&](auto m_type) {
    with_type(g_half, [&](auto g_type) {
      using M = decltype(m_type);
      using G = decltype(g_type);
      each_row(count, rows, threads, [&](int64_t i, int64_t r) {
        M* momentum = (M*)m[i] + r * m_strides[i];
        const G* x = (const G*)g[i] + r * g_strides[i];
        int64_t at = (i * rows + r) * n;
        auto row = is_usable ? covector_row<true, M, G> : covector_row<false, M, G>;
        row(momentum, x, covector + at, gradient ? gradient + at : nullptr, n, float(rate), float(nesterov));
      });
    });
  });
}

extern "C" void lite_directions(Half* a, const Half* d, Half* extra, void* const* w, const int64_t* w_strides,
                                int64_t w_half, int64_t count, int64_t rows, int64_t n, double decay, double chi_sharp,
                                double beta_sharp, double flat_base, double flat_d, int64_t threads) {
  with_type(w_half, [&](auto type) {
    using P = decltype(type);
    each_row(count, rows, threads, [&](int64_t i, int64_t r) {
      int64_t at = (i * rows + r) * n;
      const P* position = w ? (const P*)w[i] + r * w_strides[i] : nullptr;
      split_row(a + at, d ? d + at : nullptr, extra + at, position, n, float(decay), float(chi_sharp),
                float(beta_sharp), float(flat_base), float(flat_d));
    });
  });
}

extern "C" void muon_move(void* const* w, const int64_t* w_strides, int64_t w_half, const Half* u, const bool* usable,
                          int64_t count, int64_t rows, int64_t n, double size, double decay, int64_t threads) {
  if (usable && !*usable) return;
  with_type(w_half, [&](auto type) {
    using P = decltype(type);
    each_row(count, rows, threads, [&](int64_t i, int64_t r) {
      move_row((P*)w[i] + r * w_strides[i], u + (i * rows + r) * n, n, float(size), float(decay));
    });
  });
}
