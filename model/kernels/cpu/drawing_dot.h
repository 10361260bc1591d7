// Drawing with products of bfloat16 numbers and float32 sums, by AVX512_BF16's `vdpbf16ps`.
//
// The norm, the activations, and the products with the masks' filters stay in float32. For tests, scalars emulate the
// instruction with the same bits: it treats subnormal numbers as 0, and rounds after each of its two additions.

#pragma once

#include "drawing.h"

#if defined(__AVX512BF16__) || !(defined(LANES_AVX512) || defined(LANES_AVX2) || defined(LANES_NEON))
#define LANES_DOT

namespace {

#if defined(__AVX512BF16__)

// Return lanes with two bfloat16 numbers each, rounded to nearest even; subnormal numbers become 0.
inline V pair(V even, V odd) {
  constexpr uint32_t kTurns[kLanes] = {0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                                       0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f};
  __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);
  return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_loadu_si512(kTurns), halves))};
}

// Add the products of two pairs per lane to the sums, the odd numbers' first.
inline V dot(V pairs, V factors, V sums) {
  return {_mm512_dpbf16_ps(sums.v, (__m512bh)_mm512_castps_si512(pairs.v), (__m512bh)_mm512_castps_si512(factors.v))};
}

// Return table[i] of 16 numbers for lanes of `places` whose last 4 bits are i.
inline V pick_of_16(const float* table, V places) {
  return {_mm512_permutexvar_ps(_mm512_castps_si512(places.v), _mm512_loadu_ps(table))};
}

#else  // scalars

constexpr uint32_t kOdd = 0xffff0000;

template <class To, class From>
inline To bits_as(From from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float flush(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0, x) : x; }
inline uint32_t round_to_bf16(float x) {
  uint32_t bits = bits_as<uint32_t>(flush(x));
  return (x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000) & kOdd;
}
inline V pair(V even, V odd) {
  return each([&](int i) { return bits_as<float>(round_to_bf16(odd.v[i]) | round_to_bf16(even.v[i]) >> 16); });
}
inline V dot(V pairs, V factors, V sums) {
  return each([&](int i) {
    uint32_t a = bits_as<uint32_t>(pairs.v[i]), b = bits_as<uint32_t>(factors.v[i]);
    float sum = flush(__builtin_fmaf(bits_as<float>(a & kOdd), bits_as<float>(b & kOdd), flush(sums.v[i])));
    return flush(__builtin_fmaf(bits_as<float>(a << 16), bits_as<float>(b << 16), sum));
  });
}
inline V pick_of_16(const float* table, V places) {
  return each([&](int i) { return table[bits_as<uint32_t>(places.v[i]) & 15]; });
}

#endif

// As kGelu, but with polynomials of t itself, in 16 segments around 0, 1/4, 1/2, ..., 15/4. They are off by at most
// 1.1e-4, which is little compared with bfloat16's rounding.
constexpr float kFlatEnd = 3.87f;
constexpr int kFlatDegree = 2;
constexpr float kFlatGelu[kFlatDegree + 1][16] = {
    {0.0f, -0x1.4dbbeep-11f, -0x1.58cd48p-7f, -0x1.7d687ep-5f, -0x1.e82894p-4f, -0x1.c3b716p-3f, -0x1.4d1232p-2f,
     -0x1.9c096ep-2f, -0x1.b916c0p-2f, -0x1.a00bfap-2f, -0x1.5efd94p-2f, -0x1.0b3c78p-2f, -0x1.71d9c4p-3f,
     -0x1.d3b5d0p-4f, -0x1.0f57aep-4f, -0x1.9b0766p-7f},
    {-0x1.ffe02ap-2f, -0x1.f7e912p-2f, -0x1.c3c652p-2f, -0x1.4ea768p-2f, -0x1.496e0cp-3f, 0x1.481294p-6f,
     0x1.62d842p-3f, 0x1.138d38p-2f, 0x1.33381ep-2f, 0x1.1c05bep-2f, 0x1.cabac2p-3f, 0x1.4b08c0p-3f, 0x1.b09d82p-4f,
     0x1.0219f2p-4f, 0x1.1ac660p-5f, 0x1.3c9032p-8f},
    {0x1.969854p-2f, 0x1.7e6dd6p-2f, 0x1.3ac5eep-2f, 0x1.bb1522p-3f, 0x1.f1294cp-4f, 0x1.4cc3bap-5f, -0x1.fb7526p-7f,
     -0x1.72d9ccp-5f, -0x1.b7e28cp-5f, -0x1.8ce8dcp-5f, -0x1.310c16p-5f, -0x1.9f5e60p-6f, -0x1.fedf40p-7f,
     -0x1.1ee6cap-7f, -0x1.284a8cp-8f, -0x1.b604e6p-12f},
};

// Rows of numbers are multiplied in pairs, and a lane holds a pair.
struct DotProducts {
  static int terms(int count) { return (count + 1) / 2; }

  // Convert rows (count, width) to pairs of rows, which may replace them; the last one of an odd number has a row of 0.
  static const float* prepare(const float* rows, int count, int width, float* pairs) {
    for (int row = 0; row < count; row += 2) {
      for (int x = 0; x < width; x += kLanes) {
        const float* even = rows + row * width + x;
        store(pairs + row / 2 * width + x, pair(load(even), row + 1 < count ? load(even + width) : broadcast(0)));
      }
    }
    return pairs;
  }

  static void add_product(const float* packed, const float* inputs, int count, Tile& totals) {
    for (int term = 0; term < count; ++term, packed += kOutputs, inputs += kBlock) {
      V values[kVectors];
      for (int v = 0; v < kVectors; ++v) values[v] = load(inputs + v * kLanes);
      for (int out = 0; out < kOutputs; ++out) {
        V factor = broadcast(packed[out]);
        for (int v = 0; v < kVectors; ++v) totals[out][v] = dot(values[v], factor, totals[out][v]);
      }
    }
  }

  static V activate(V x) {
    V size = absolute(x);
    V at = min(size, broadcast(kFlatEnd));
    V place = at + broadcast(0x1p21f);  // its last bits are the number of quarters
    V tail = pick_of_16(kFlatGelu[kFlatDegree], place);
    for (int power = kFlatDegree - 1; power >= 0; --power) tail = fma(tail, at, pick_of_16(kFlatGelu[power], place));
    return fma(broadcast(0.5f), x + size, tail);
  }
};

}  // namespace

#endif
