"""Sine and cosine of one argument, as C++ code that compilers can vectorise.

C++ has no such function: a library's sine and cosine reduce the same argument twice, and each evaluates the polynomials
of both.
"""

from __future__ import annotations

# The reduction below holds up to this |x|; beyond it, the C library's functions handle one number at a time.
FAR = "0x1p30"

# Errors are below 0.8 units in the last place (measured against mpmath); x = ±0, subnormals, infinities and NaN give
# the standard results.
#
# Reduction (W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980): x = qπ/2 + r + e with π/2 in
# three parts of 53 bits. With a fused multiply-add x − qP1 is exact, and so is the tail pe of qP2. No double is closer
# to a multiple of π/2 than 2^-61, so r + e is good to 2^-70 relative.
# Polynomials on |r| ≤ π/4: k_sin.c and k_cos.c of fdlibm 5.3 (Sun Microsystems, 1993, freely distributable), evaluated
# with fused multiply-adds. The lowest two bits of q are those of q + 1.5·2^52.
CIRCLE = """
struct Circle { double sine, cosine; };
__attribute__((noinline)) static Circle library_circle(double x) { return {sin(x), cos(x)}; }
template <bool anywhere> inline Circle circle(double x) {
#if defined __FP_FAST_FMA || defined __FMA__
  if (anywhere && std::abs(x) > FAR) return library_circle(x);
  const double shifted = std::fma(x, 0x1.45f306dc9c883p-1, 0x1.8p52), q = shifted - 0x1.8p52;
  const double exact = std::fma(q, -0x1.921fb54442d18p+0, x);
  const double p = q * 0x1.1a62633145c07p-54, pe = std::fma(q, 0x1.1a62633145c07p-54, -p);
  const double r = exact - p, e = ((exact - r) - p) - std::fma(q, -0x1.f1976b7ed8fbcp-110, pe);
  const double z = r * r, v = z * r;
  double a = std::fma(z, 1.58969099521155010221e-10, -2.50507602534068634195e-08);
  a = std::fma(z, a, 2.75573137070700676789e-06);
  a = std::fma(z, a, -1.98412698298579493134e-04);
  a = std::fma(z, a, 8.33333333332248946124e-03);
  const double tail = std::fma(z, std::fma(-v, a, 0.5 * e), -e);
  const double s = r - std::fma(v, 1.66666666666666324348e-01, tail);
  double b = std::fma(z, -1.13596475577881948265e-11, 2.08757232129817482790e-09);
  b = std::fma(z, b, -2.75573143513906633035e-07);
  b = std::fma(z, b, 2.48015872894767294178e-05);
  b = std::fma(z, b, -1.38888888888741095749e-03);
  b = std::fma(z, b, 4.16666666666666019037e-02);
  const double half = 0.5 * z, w = 1.0 - half;
  const double c = w + (((1.0 - w) - half) + std::fma(z, z * b, -(r * e)));
  uint64_t quadrant, of_sine, of_cosine;
  std::memcpy(&quadrant, &shifted, 8);
  const bool is_odd = quadrant & 1;
  const double to_sine = is_odd ? c : s, to_cosine = is_odd ? s : c;
  std::memcpy(&of_sine, &to_sine, 8);
  std::memcpy(&of_cosine, &to_cosine, 8);
  of_sine ^= (quadrant & 2) << 62;
  of_cosine ^= ((quadrant + 1) & 2) << 62;
  Circle result;
  std::memcpy(&result.sine, &of_sine, 8);
  std::memcpy(&result.cosine, &of_cosine, 8);
  return result;
#else
  return {sin(x), cos(x)};
#endif
}
""".replace("FAR", FAR)
