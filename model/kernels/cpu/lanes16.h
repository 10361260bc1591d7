// Vectors of 16 float lanes with one back end per instruction set: AVX-512 (1 x 512 bits), AVX2 (2 x 256), NEON
// (4 x 128), and scalars.
//
// Each operation is exact per lane: it copies, compares, or rounds once as IEEE 754 says. So the same sequence of
// operations gives the same bits with every back end. A multiplication is only fused with an addition by `fma`, because
// the compiler runs with -ffp-contract=off. min, max, and comparisons with NaN behave as in SSE: min(a, b) is
// a < b ? a : b, and a comparison is false. Which NaN an operation returns depends on the CPU.
//
// A Mask has one bit per lane, the lowest one for lane 0.

#pragma once

#include <math.h>
#include <stdint.h>

#if defined(LANES_AVX512) || defined(LANES_AVX2)
#include <immintrin.h>
#elif defined(LANES_NEON)
#include <arm_neon.h>
#endif

namespace {

constexpr int kLanes = 16;

using Mask = uint32_t;

inline int count(Mask mask) { return __builtin_popcount(mask); }

#if defined(LANES_AVX512)

struct V {
  __m512 v;
};

inline V load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, V a) { _mm512_storeu_ps(to, a.v); }
inline V broadcast(float value) { return {_mm512_set1_ps(value)}; }
inline V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
inline V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
inline V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
inline V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
inline V absolute(V a) { return {_mm512_abs_ps(a.v)}; }
inline V root(V a) { return {_mm512_sqrt_ps(a.v)}; }
inline V whole(V a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)}; }
inline Mask above(V a, V b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline Mask at_most(V a, V b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ); }

// Return table[i] of 8 numbers for lanes that are whole numbers i from 0 to 7.
inline V pick(const float* table, V places) {
  __m512 numbers = _mm512_castps256_ps512(_mm256_loadu_ps(table));
  return {_mm512_permutexvar_ps(_mm512_cvttps_epi32(places.v), numbers)};
}

// Return a times 2^n for lanes of `powers` that are whole numbers n from -126 to 127; NaN if a is.
inline V times_power_of_2(V a, V powers) {
  __m512i exponents = _mm512_add_epi32(_mm512_cvttps_epi32(powers.v), _mm512_set1_epi32(127));
  return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(_mm512_slli_epi32(exponents, 23)))};
}

// Transpose 16 x 16 floats whose rows are `from_width` and `to_width` floats apart.
inline void transpose(const float* from, int from_width, float* to, int to_width) {
  __m512 rows[16], pairs[16], fours[16];
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_ps(from + i * from_width);
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int half = 0; half < 2; ++half) {
      __m512d low = _mm512_castps_pd(pairs[i + half]), high = _mm512_castps_pd(pairs[i + 2 + half]);
      fours[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      fours[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  for (int i = 0; i < 4; ++i) {  // column i of each group of 4 columns
    __m512 even = _mm512_shuffle_f32x4(fours[i], fours[4 + i], 0x88);
    __m512 odd = _mm512_shuffle_f32x4(fours[i], fours[4 + i], 0xdd);
    __m512 later_even = _mm512_shuffle_f32x4(fours[8 + i], fours[12 + i], 0x88);
    __m512 later_odd = _mm512_shuffle_f32x4(fours[8 + i], fours[12 + i], 0xdd);
    _mm512_storeu_ps(to + i * to_width, _mm512_shuffle_f32x4(even, later_even, 0x88));
    _mm512_storeu_ps(to + (4 + i) * to_width, _mm512_shuffle_f32x4(odd, later_odd, 0x88));
    _mm512_storeu_ps(to + (8 + i) * to_width, _mm512_shuffle_f32x4(even, later_even, 0xdd));
    _mm512_storeu_ps(to + (12 + i) * to_width, _mm512_shuffle_f32x4(odd, later_odd, 0xdd));
  }
}

inline bool pick_near(const float* row, int width, const int32_t* places, V* found) {
  int base = places[0] < width - 16 ? places[0] : width - 16;
  if (places[15] - base > 15) return false;
  __m512i offsets = _mm512_sub_epi32(_mm512_loadu_si512(places), _mm512_set1_epi32(base));
  *found = {_mm512_permutexvar_ps(offsets, _mm512_loadu_ps(row + base))};
  return true;
}

#elif defined(LANES_AVX2)

struct V {
  __m256 a, b;
};

inline V load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, V x) { _mm256_storeu_ps(to, x.a), _mm256_storeu_ps(to + 8, x.b); }
inline V broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline V operator+(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline V operator-(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline V operator*(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline V operator/(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline V fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline V min(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline V max(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline V absolute(V x) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline V root(V x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
inline V whole(V x) {
  constexpr int kMode = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, kMode), _mm256_round_ps(x.b, kMode)};
}
inline Mask bits(__m256 low, __m256 high) {
  return static_cast<Mask>(_mm256_movemask_ps(low)) | static_cast<Mask>(_mm256_movemask_ps(high)) << 8;
}
inline Mask above(V x, V y) {
  return bits(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ));
}
inline Mask at_most(V x, V y) {
  return bits(_mm256_cmp_ps(x.a, y.a, _CMP_LE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LE_OQ));
}

inline V pick(const float* table, V places) {
  __m256 numbers = _mm256_loadu_ps(table);
  return {_mm256_permutevar8x32_ps(numbers, _mm256_cvttps_epi32(places.a)),
          _mm256_permutevar8x32_ps(numbers, _mm256_cvttps_epi32(places.b))};
}

inline __m256 times_power_of_2(__m256 a, __m256 powers) {
  __m256i exponents = _mm256_add_epi32(_mm256_cvttps_epi32(powers), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponents, 23)));
}
inline V times_power_of_2(V x, V powers) {
  return {times_power_of_2(x.a, powers.a), times_power_of_2(x.b, powers.b)};
}

inline void transpose_quarter(const float* from, int from_width, float* to, int to_width) {
  __m256 rows[8], pairs[8], fours[8];
  for (int i = 0; i < 8; ++i) rows[i] = _mm256_loadu_ps(from + i * from_width);
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int half = 0; half < 2; ++half) {
      fours[i + 2 * half] = _mm256_shuffle_ps(pairs[i + half], pairs[i + 2 + half], 0x44);
      fours[i + 2 * half + 1] = _mm256_shuffle_ps(pairs[i + half], pairs[i + 2 + half], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_width, _mm256_permute2f128_ps(fours[i], fours[4 + i], 0x20));
    _mm256_storeu_ps(to + (4 + i) * to_width, _mm256_permute2f128_ps(fours[i], fours[4 + i], 0x31));
  }
}
inline void transpose(const float* from, int from_width, float* to, int to_width) {
  for (int down = 0; down < 16; down += 8) {
    for (int across = 0; across < 16; across += 8) {
      transpose_quarter(from + down * from_width + across, from_width, to + across * to_width + down, to_width);
    }
  }
}

inline bool pick_near_half(const float* row, int width, const int32_t* places, __m256* found) {
  int base = places[0] < width - 8 ? places[0] : width - 8;
  if (places[7] - base > 7) return false;
  const __m256i* at = reinterpret_cast<const __m256i*>(places);
  __m256i offsets = _mm256_sub_epi32(_mm256_loadu_si256(at), _mm256_set1_epi32(base));
  *found = _mm256_permutevar8x32_ps(_mm256_loadu_ps(row + base), offsets);
  return true;
}
inline bool pick_near(const float* row, int width, const int32_t* places, V* found) {
  return pick_near_half(row, width, places, &found->a) && pick_near_half(row, width, places + 8, &found->b);
}

#elif defined(LANES_NEON)

struct V {
  float32x4_t v[4];
};

template <class Function>
inline V each(Function function) {
  return {{function(0), function(1), function(2), function(3)}};
}
inline V load(const float* from) {
  return each([=](int i) { return vld1q_f32(from + 4 * i); });
}
inline void store(float* to, V a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, a.v[i]);
}
inline V broadcast(float value) {
  return each([=](int) { return vdupq_n_f32(value); });
}
inline V fma(V a, V b, V c) {
  return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline V min(V a, V b) {  // not vminq, which is NaN if a is
  return each([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline V max(V a, V b) {
  return each([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline V absolute(V a) {
  return each([&](int i) { return vabsq_f32(a.v[i]); });
}
inline V root(V a) {
  return each([&](int i) { return vsqrtq_f32(a.v[i]); });
}
inline V whole(V a) {
  return each([&](int i) { return vrndq_f32(a.v[i]); });
}

template <class Function>
inline Mask mask_of(Function function) {
  const uint32x4_t bits = {1, 2, 4, 8};
  uint32x4_t out = vandq_u32(function(0), bits);
  out = vorrq_u32(out, vandq_u32(function(1), vshlq_n_u32(bits, 4)));
  out = vorrq_u32(out, vandq_u32(function(2), vshlq_n_u32(bits, 8)));
  return vaddvq_u32(vorrq_u32(out, vandq_u32(function(3), vshlq_n_u32(bits, 12))));
}
inline Mask above(V a, V b) {
  return mask_of([&](int i) { return vcgtq_f32(a.v[i], b.v[i]); });
}
inline Mask at_most(V a, V b) {
  return mask_of([&](int i) { return vcleq_f32(a.v[i], b.v[i]); });
}

// Return the places of the bytes of four floats at `floats`.
inline uint8x16_t places_of_bytes(int32x4_t floats) {
  return vreinterpretq_u8_s32(vaddq_s32(vmulq_n_s32(floats, 0x04040404), vdupq_n_s32(0x03020100)));
}
inline V pick(const float* table, V places) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(table);
  uint8x16x2_t numbers = {{vld1q_u8(bytes), vld1q_u8(bytes + 16)}};
  return each([&](int i) {
    return vreinterpretq_f32_u8(vqtbl2q_u8(numbers, places_of_bytes(vcvtq_s32_f32(places.v[i]))));
  });
}

inline V times_power_of_2(V a, V powers) {
  return each([&](int i) {
    int32x4_t exponents = vaddq_s32(vcvtq_s32_f32(powers.v[i]), vdupq_n_s32(127));
    return vmulq_f32(a.v[i], vreinterpretq_f32_s32(vshlq_n_s32(exponents, 23)));
  });
}

inline void transpose(const float* from, int from_width, float* to, int to_width) {
  for (int row = 0; row < 16; row += 4) {
    for (int column = 0; column < 16; column += 2) {
      const float* at = from + row * from_width + column;
      float32x4_t even = vcombine_f32(vld1_f32(at), vld1_f32(at + 2 * from_width));
      float32x4_t odd = vcombine_f32(vld1_f32(at + from_width), vld1_f32(at + 3 * from_width));
      vst1q_f32(to + column * to_width + row, vtrn1q_f32(even, odd));
      vst1q_f32(to + (column + 1) * to_width + row, vtrn2q_f32(even, odd));
    }
  }
}

inline bool pick_near(const float* row, int width, const int32_t* places, V* found) {
  int base = places[0] < width - 16 ? places[0] : width - 16;
  if (places[15] - base > 15) return false;
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(row + base);
  uint8x16x4_t numbers = {{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}};
  *found = each([&](int i) {
    int32x4_t offsets = vsubq_s32(vld1q_s32(places + 4 * i), vdupq_n_s32(base));
    return vreinterpretq_f32_u8(vqtbl4q_u8(numbers, places_of_bytes(offsets)));
  });
  return true;
}

#else  // scalars

struct V {
  float v[kLanes];
};

template <class Function>
inline V each(Function function) {
  V out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = function(i);
  return out;
}
template <class Function>
inline Mask mask_of(Function function) {
  Mask out = 0;
  for (int i = 0; i < kLanes; ++i) out |= static_cast<Mask>(function(i)) << i;
  return out;
}
inline V load(const float* from) {
  return each([=](int i) { return from[i]; });
}
inline void store(float* to, V a) {
  for (int i = 0; i < kLanes; ++i) to[i] = a.v[i];
}
inline V broadcast(float value) {
  return each([=](int) { return value; });
}
inline V fma(V a, V b, V c) {
  return each([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
inline V min(V a, V b) {
  return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline V max(V a, V b) {
  return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline V absolute(V a) {
  return each([&](int i) { return __builtin_fabsf(a.v[i]); });
}
inline V root(V a) {
  return each([&](int i) { return __builtin_sqrtf(a.v[i]); });
}
inline V whole(V a) {
  return each([&](int i) { return __builtin_truncf(a.v[i]); });
}
inline Mask above(V a, V b) {
  return mask_of([&](int i) { return a.v[i] > b.v[i]; });
}
inline Mask at_most(V a, V b) {
  return mask_of([&](int i) { return a.v[i] <= b.v[i]; });
}
inline V pick(const float* table, V places) {
  return each([&](int i) { return table[static_cast<int>(places.v[i])]; });
}
inline V times_power_of_2(V a, V powers) {
  return each([&](int i) {
    bool fits = powers.v[i] >= -126 && powers.v[i] <= 127;  // and is not NaN
    return fits ? a.v[i] * __builtin_ldexpf(1, static_cast<int>(powers.v[i])) : a.v[i];
  });
}
inline void transpose(const float* from, int from_width, float* to, int to_width) {
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 16; ++column) to[column * to_width + row] = from[row * from_width + column];
  }
}
inline bool pick_near(const float*, int, const int32_t*, V*) { return false; }

#endif

#if !defined(LANES_AVX512) && !defined(LANES_AVX2)  // GCC and Clang have operators for NEON's vectors, too

inline V operator+(V a, V b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline V operator-(V a, V b) {
  return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline V operator*(V a, V b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline V operator/(V a, V b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}

#endif

// Return row[places[i]] for 16 places that don't decrease, from a row of `width` floats, 16 or more. Places after the
// row's end give an arbitrary float of the row.
inline V pick_places(const float* row, int width, const int32_t* places) {
  V found;
  if (pick_near(row, width, places, &found)) return found;
  float out[kLanes];
  for (int i = 0; i < kLanes; ++i) out[i] = row[places[i] < width ? places[i] : width - 1];
  return load(out);
}

}  // namespace
