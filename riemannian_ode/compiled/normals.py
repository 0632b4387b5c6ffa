"""The normal numbers of :mod:`riemannian_ode.normals` in C++, for a block of members at once."""

from __future__ import annotations

# Philox 4×64-10 with the constants of Salmon, Moraes, Dror and Shaw, SC '11; numpy's generator yields the same words.
# Multipliers and Weyl constants: their table 2 and Random123's philox.h.
NORMALS = """
struct Draws { uint64_t key[2], first_member, first_step; };
inline void philox(uint64_t member, uint64_t block, const uint64_t* key, uint64_t words[4]) {
  uint64_t a = member, b = block, c = 0, d = 0, k = key[0], l = key[1];
  for (int round = 0; round < 10; ++round) {
    const unsigned __int128 x = (unsigned __int128)0xD2E7470EE14C6C93 * a;
    const unsigned __int128 y = (unsigned __int128)0xCA5A826395121157 * c;
    a = (uint64_t)(y >> 64) ^ b ^ k, b = (uint64_t)y;
    c = (uint64_t)(x >> 64) ^ d ^ l, d = (uint64_t)x;
    k += 0x9E3779B97F4A7C15, l += 0xBB67AE8584CAA73B;
  }
  words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}
// Pair j of step k is pair k * PAIRS + j of its member; a block of four words has two pairs.
inline void draw(const Draws& draws, uint64_t at, uint64_t k, bool is_first, uint64_t (&words)[4][LANES],
                 T (&normals)[2 * PAIRS][LANES]) {
  for (int j = 0; j < PAIRS; ++j) {
    const uint64_t pair = (draws.first_step + k) * PAIRS + j;
    if (pair % 2 == 0 || (is_first && j == 0))
      for (int i = 0; i < LANES; ++i) {
        uint64_t drawn[4];
        philox(draws.first_member + at + i, pair / 2, draws.key, drawn);
        for (int n = 0; n < 4; ++n) words[n][i] = drawn[n];
      }
    const uint64_t(&u)[LANES] = words[2 * (pair % 2)], (&v)[LANES] = words[2 * (pair % 2) + 1];
#pragma omp simd
    for (int i = 0; i < LANES; ++i) {
      const double radius = std::sqrt(-2.0 * log(double(int64_t(u[i] >> 11) + 1) * 0x1p-53));
      const Circle angle = circle<false>(double(int64_t(v[i] >> 11)) * (2.0 * M_PI * 0x1p-53));
      normals[2 * j][i] = T(radius * angle.cosine), normals[2 * j + 1][i] = T(radius * angle.sine);
    }
  }
}
"""
