// Products of matrices with blocks of positions, whose sums stay in registers.

#pragma once

#include "lanes16.h"

namespace {

// Positions that go through all steps together.
constexpr int kBlock = 32;

// Terms whose products have a sum of their own, which keeps rounding errors small.
constexpr int kTerms = 32;

// Return the number of terms in the group that begins at `term`.
inline int group(int term, int terms) { return terms - term < kTerms ? terms - term : kTerms; }

// Numbers that a product reads as factors: row r and term k are at from[r * row + k * term].
struct Factors {
  const float* from;
  int row, term;

  Factors after(int terms) const { return {from + terms * term, row, term}; }
};

template <int kCount, int kWide>
inline void clear(V (&sums)[kCount][kWide]) {
  for (int row = 0; row < kCount; ++row) {
    for (int v = 0; v < kWide; ++v) sums[row][v] = broadcast(0);
  }
}

// Add to each sum the products of `terms` factors and vectors, which are `width` floats apart.
template <int kCount, int kWide>
inline void multiply(Factors factors, const float* vectors, int width, int terms, V (&sums)[kCount][kWide]) {
  for (int term = 0; term < terms; ++term, vectors += width, factors.from += factors.term) {
    V values[kWide];
    for (int v = 0; v < kWide; ++v) values[v] = load(vectors + v * kLanes);
    for (int row = 0; row < kCount; ++row) {
      V factor = broadcast(factors.from[row * factors.row]);
      for (int v = 0; v < kWide; ++v) sums[row][v] = fma(factor, values[v], sums[row][v]);
    }
  }
}

}  // namespace
