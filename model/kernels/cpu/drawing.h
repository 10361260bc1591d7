// Low-resolution logits of a prompt's masks: SAM's output upscaling, and products with the masks' filters.
//
// The prompt's image is given in factors (model/sam/point_decoder.py): at each position, the shared image times a
// scale, plus a weighted sum of a few vectors. The first step of upscaling is linear, so the caller applies it to the
// factors. It makes 4 pixels of 64 channels of each position. They are normalized and activated, and the second step
// makes 4 pixels of 32 channels of each. These are activated and multiplied by the filters. SAM 2.1 adds a map of the
// image to the output of both steps.
//
// Lanes are positions, so sums over channels are in one order for every instruction set. A block of 32 positions goes
// through all steps while it is in the L1 cache. Maps that belong to an image are stored block by block.

#pragma once

#include <string.h>

#include "products.h"

extern "C" {

// What all prompts on an image share: side x side positions, in blocks of 32.
struct Upscaler {
  const float* shared;        // (blocks, 256, 32), the shared image after the first step
  const float* first_added;   // (blocks, 256, 32), added to the output of the first step, or null
  const float* second_added;  // (blocks, 512, 32), added to that of the second step, or null
  const float* norm;          // (2, 64), weight and bias
  const float* second;        // (64, 128), weight of the second step, inputs first
  const float* second_bias;   // (128)
  int32_t side;               // a multiple of 32
  float epsilon;              // of the norm
};

// One prompt's image, and the filters of the masks to draw.
struct Prompt {
  const float* scale;         // (positions)
  const float* coefficients;  // (blocks, rows, 32)
  const float* vectors;       // (rows, 256), after the first step
  const float* filters;       // (masks, 32)
  int32_t rows;
  int32_t masks;              // 1 to 4
};
}

namespace {

constexpr int kHidden = 64, kFinal = 32, kParts = 4;
constexpr int kFirst = kParts * kHidden, kSecond = kParts * kFinal;
constexpr int kMostMasks = 4;

// Outputs and vectors of positions of which a product keeps the sums in registers. They don't affect results.
#if defined(LANES_AVX512)
constexpr int kOutputs = 8, kVectors = 2;
#else
constexpr int kOutputs = 2, kVectors = 2;
#endif

using Tile = V[kOutputs][kVectors];

// GELU(x) is max(x, 0) - t Phi(-t) with t = |x|. The second term is a polynomial of t in each of 8 equal segments from
// 0 to 6, and keeps its last value after them. Before rounding, it is off by at most 6e-9.
constexpr float kEnd = 6;
constexpr int kDegree = 7;
constexpr float kGelu[kDegree + 1][8] = {
    {0.0f, -0x1.5c1980p-3f, -0x1.9a76a4p-4f, -0x1.c2a498p-6f, -0x1.096698p-8f, -0x1.5babc2p-12f, -0x1.0083fcp-16f,
     -0x1.acb386p-22f},
    {-0x1.80000ep-2f, -0x1.304942p-11f, 0x1.8795c0p-4f, 0x1.6ba950p-5f, 0x1.2593bap-7f, 0x1.e52848p-11f,
     0x1.af2346p-15f, 0x1.a50256p-20f},
    {0x1.cb9768p-3f, 0x1.f2a7bap-4f, -0x1.2a587ap-7f, -0x1.bfe46ep-6f, -0x1.1decdap-7f, -0x1.3996fap-10f,
     -0x1.57fef2p-14f, -0x1.8de346p-19f},
    {-0x1.57438ep-15f, -0x1.bebba0p-5f, -0x1.87e5fcp-6f, 0x1.5d0c02p-8f, 0x1.329dbcp-8f, 0x1.eaab6ap-11f,
     0x1.57ca0cp-14f, 0x1.dddc1ap-19f},
    {-0x1.55e23ap-6f, -0x1.c3d432p-10f, 0x1.77e3dcp-7f, 0x1.43988ep-9f, -0x1.557f32p-10f, -0x1.f95858p-12f,
     -0x1.da1282p-15f, -0x1.8fe148p-19f},
    {-0x1.9d5824p-12f, 0x1.81a830p-8f, -0x1.86cce0p-11f, -0x1.d5c8b0p-10f, 0x1.36f1c8p-15f, 0x1.57c040p-13f,
     0x1.c9f518p-16f, 0x1.d30da4p-20f},
    {0x1.2c5f78p-9f, -0x1.0080c8p-10f, -0x1.9aeb2cp-11f, 0x1.c73dacp-12f, 0x1.8bb942p-14f, -0x1.1cb1eap-15f,
     -0x1.1eeb98p-17f, -0x1.59ea56p-21f},
    {-0x1.83c384p-12f, -0x1.b150b6p-15f, 0x1.86819cp-13f, -0x1.337a48p-15f, -0x1.7c9ca2p-16f, 0x1.b33c44p-19f,
     0x1.603facp-20f, 0x1.e4c44ep-24f},
};

inline V gelu(V x) {
  V size = absolute(x);
  V place = min(size * broadcast(8 / kEnd), broadcast(0x1.fffffep+2f));
  V segment = whole(place), at = place - segment;
  V tail = pick(kGelu[kDegree], segment);
  for (int power = kDegree - 1; power >= 0; --power) tail = fma(tail, at, pick(kGelu[power], segment));
  return fma(broadcast(0.5f), x + size, tail);
}

// Copy weights (inputs, outputs) to tiles of kOutputs outputs, in which those of an input are adjacent.
inline void pack(const float* weights, int inputs, int outputs, float* packed) {
  for (int tile = 0; tile < outputs; tile += kOutputs) {
    for (int input = 0; input < inputs; ++input, packed += kOutputs) {
      memcpy(packed, weights + input * outputs + tile, kOutputs * sizeof(float));
    }
  }
}

// Add a tile of packed weights times inputs (terms, kBlock) to the totals.
inline void add_product(const float* packed, const float* inputs, int terms, Tile& totals) {
  for (int start = 0; start < terms; start += kTerms) {
    Tile sums;
    clear(sums);
    multiply(Factors{packed, 1, kOutputs}.after(start), inputs + start * kBlock, kBlock, group(start, terms), sums);
    for (int out = 0; out < kOutputs; ++out) {
      for (int v = 0; v < kVectors; ++v) totals[out][v] = totals[out][v] + sums[out][v];
    }
  }
}

// Compute one of the 4 pixels that the first step makes of each position, (kHidden, kBlock), from packed vectors.
inline void upscale(const Upscaler& upscaler, const Prompt& prompt, const float* vectors, const float* coefficients,
                    int block, int part, float* pixels) {
  const int64_t channels = static_cast<int64_t>(block) * kFirst + part * kHidden;
  const float* scale = prompt.scale + static_cast<int64_t>(block) * kBlock;
  for (int tile = 0; tile < kHidden; tile += kOutputs) {
    for (int x = 0; x < kBlock; x += kVectors * kLanes) {
      Tile sums;
      for (int out = 0; out < kOutputs; ++out) {
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = (channels + tile + out) * kBlock + x + v * kLanes;
          sums[out][v] = load(upscaler.shared + at) * load(scale + x + v * kLanes);
          __builtin_prefetch(upscaler.shared + at + kFirst * kBlock, 0, 2);  // the next block's
          if (upscaler.first_added) sums[out][v] = sums[out][v] + load(upscaler.first_added + at);
        }
      }
      add_product(vectors + (part * kHidden + tile) * prompt.rows, coefficients + x, prompt.rows, sums);
      for (int out = 0; out < kOutputs; ++out) {
        for (int v = 0; v < kVectors; ++v) store(pixels + (tile + out) * kBlock + x + v * kLanes, sums[out][v]);
      }
    }
  }
}

// Return the mean of 64 numbers per lane from four partial sums.
inline V mean_of(const V (&sums)[4]) {
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) * broadcast(1.0f / kHidden);
}

// Normalize pixels (kHidden, kBlock) over the channels, and activate them.
inline void normalize(const Upscaler& upscaler, float* pixels) {
  for (int x = 0; x < kBlock; x += kLanes) {
    V sums[4], squares[4];
    for (int part = 0; part < 4; ++part) sums[part] = squares[part] = broadcast(0);
    for (int channel = 0; channel < kHidden; channel += 4) {
      for (int part = 0; part < 4; ++part) sums[part] = sums[part] + load(pixels + (channel + part) * kBlock + x);
    }
    V mean = mean_of(sums);
    for (int channel = 0; channel < kHidden; channel += 4) {
      for (int part = 0; part < 4; ++part) {
        V centered = load(pixels + (channel + part) * kBlock + x) - mean;
        squares[part] = fma(centered, centered, squares[part]);
      }
    }
    V shrink = broadcast(1) / root(mean_of(squares) + broadcast(upscaler.epsilon));
    for (int channel = 0; channel < kHidden; ++channel) {
      V scaled = (load(pixels + channel * kBlock + x) - mean) * shrink;
      V weight = broadcast(upscaler.norm[channel]), bias = broadcast(upscaler.norm[kHidden + channel]);
      store(pixels + channel * kBlock + x, gelu(fma(scaled, weight, bias)));
    }
  }
}

// Compute logits (masks, kBlock) of one of the 4 pixels that the second step makes of pixels (kHidden, kBlock); `added`
// (kFinal, kBlock) may be null.
inline void filter(const Upscaler& upscaler, const Prompt& prompt, const float* second, const float* added, int part,
                   const float* pixels, float (*logits)[kBlock]) {
  for (int x = 0; x < kBlock; x += kVectors * kLanes) {
    V found[kMostMasks][kVectors];
    clear(found);
    for (int tile = 0; tile < kFinal; tile += kOutputs) {
      const int first = part * kFinal + tile;
      Tile sums;
      for (int out = 0; out < kOutputs; ++out) {
        for (int v = 0; v < kVectors; ++v) {
          sums[out][v] = broadcast(upscaler.second_bias[first + out]);
          if (added) sums[out][v] = sums[out][v] + load(added + (tile + out) * kBlock + x + v * kLanes);
        }
      }
      add_product(second + first * kHidden, pixels + x, kHidden, sums);
      for (int out = 0; out < kOutputs; ++out) {
        for (int v = 0; v < kVectors; ++v) sums[out][v] = gelu(sums[out][v]);
      }
      for (int mask = 0; mask < prompt.masks; ++mask) {
        const float* weights = prompt.filters + mask * kFinal + tile;
        for (int out = 0; out < kOutputs; ++out) {
          for (int v = 0; v < kVectors; ++v) {
            found[mask][v] = fma(broadcast(weights[out]), sums[out][v], found[mask][v]);
          }
        }
      }
    }
    for (int mask = 0; mask < prompt.masks; ++mask) {
      for (int v = 0; v < kVectors; ++v) store(logits[mask] + x + v * kLanes, found[mask][v]);
    }
  }
}

// Write a block's logits (16, kMostMasks, kBlock) to `out` (masks, 4 side, 4 side). The first step makes 2x2 pixels
// (a, b) of a position, and the second 2x2 (c, d) of each of these.
inline void unfold(const float (*logits)[kMostMasks][kBlock], int masks, int side, int block, float* out) {
  const int64_t y = static_cast<int64_t>(block) * kBlock / side, x = static_cast<int64_t>(block) * kBlock % side;
  for (int mask = 0; mask < masks; ++mask) {
    for (int down = 0; down < 4; ++down) {
      float* line = out + ((mask * static_cast<int64_t>(side) + y) * 4 + down) * side * 4 + 4 * x;
      const int first = down / 2 * 8 + down % 2 * 2;  // (a, 0, c, 0)
      const float *p = logits[first][mask], *q = logits[first + 1][mask];
      const float *r = logits[first + 4][mask], *s = logits[first + 5][mask];
      for (int i = 0; i < kBlock; ++i, line += 4) line[0] = p[i], line[1] = q[i], line[2] = r[i], line[3] = s[i];
    }
  }
}

// Draw the part of logits (masks, 4 side, 4 side) that is in blocks from `start` to `end`. `scratch` has room for
// 256 rows + 8192 floats.
inline void draw(const Upscaler& upscaler, const Prompt& prompt, int start, int end, float* scratch, float* out) {
  float *vectors = scratch, *second = vectors + prompt.rows * kFirst;
  pack(prompt.vectors, prompt.rows, kFirst, vectors);
  pack(upscaler.second, kHidden, kSecond, second);
  float pixels[kHidden * kBlock];
  float logits[kParts * kParts][kMostMasks][kBlock];
  for (int block = start; block < end; ++block) {
    const float* coefficients = prompt.coefficients + static_cast<int64_t>(block) * prompt.rows * kBlock;
    for (int part = 0; part < kParts; ++part) {
      upscale(upscaler, prompt, vectors, coefficients, block, part, pixels);
      normalize(upscaler, pixels);
      for (int inner = 0; inner < kParts; ++inner) {
        const int64_t pixel = (static_cast<int64_t>(block) * kParts + part) * kParts + inner;
        const float* added = upscaler.second_added ? upscaler.second_added + pixel * kFinal * kBlock : nullptr;
        filter(upscaler, prompt, second, added, inner, pixels, logits[part * kParts + inner]);
      }
    }
    unfold(logits, prompt.masks, upscaler.side, block, out);
  }
}

}  // namespace
