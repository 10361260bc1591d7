// A step of SAM's mask decoder that visits every position of the image: the image attends to a prompt's tokens and is
// normalized, and then the tokens of the next block attend to the image.
//
// The prompt's image is kept in factors (model/sam/point_decoder.py): at each position, the shared image times a
// scale, plus a weighted sum of a few vectors. New coefficients are stored before those of earlier steps, and the
// coefficient of the norm's bias, which is 1, after them. In the first step, the image may already have such vectors,
// those of a mask that belongs to the prompt.
//
// Lanes are positions until the tokens' attention, and then tokens. Sums over positions are made block by block, and
// the blocks' sums are added in order. A block of 32 positions goes through all steps while it is in the L1 cache.

#pragma once

#include <string.h>

#include "products.h"

extern "C" {

// What all prompts on an image share in a step. Maps of the image are stored block by block.
struct Step {
  const float* answer_own;     // (blocks, heads 16, 32), queries of the shared image; in the first step, complete
  const float* answer_places;  // (blocks, heads 16, 32), queries of the positions, or null in the first step
  const float* squares;        // (positions), square sums of the shared image without its mean
  const float* projected;      // (blocks, steps heads 16, 32), from values to products with the shared image
  const float* constants;      // (blocks, constant_rows, 32), products of the other vectors with the shared image
  const float* look_own;       // (blocks, heads 16, 32), keys of the shared image
  const float* look_places;    // (blocks, heads 16, 32), keys of the positions
  const float* look_values;    // (positions, heads 16)
  int32_t blocks;              // of 32 positions
  int32_t heads;
  int32_t tokens;              // per head; heads x tokens is at most 128
  int32_t queries;             // per head; heads x queries is at most 128
  int32_t steps;               // up to and including this one
  int32_t constant_rows;       // vectors that no tokens of this prompt made: a mask's, and biases of earlier norms
  int32_t rows;                // coefficients per position of all steps that the decoder has
  int32_t first;               // the first row of this step
  int32_t channels;            // of the image
  float epsilon;               // of the norm
};

// One prompt's tokens and image. N = steps heads tokens + constant_rows are the vectors before the norm, and M is heads
// queries, rounded up to a multiple of 32.
struct Tokens {
  const float* keys;           // (heads tokens, 16), scaled
  const float* answer_prior;   // (heads tokens, N - heads tokens), products with the queries of the image's vectors
  const float* values;         // (steps heads tokens, 16)
  const float* gram;           // (N, N), products of the vectors; below the diagonal doubled, above it 0
  const float* queries;        // (heads queries, 16), scaled
  const float* look_prior;     // (heads queries, N + 1), products with the keys of the vectors after the norm
  float* scale;                // (positions), replaced
  float* coefficients;         // (blocks, rows, 32): N + 1 rows are replaced
  float* largest;              // (M), largest score of each query
  float* own;                  // (heads queries, 16), weighted sums of the shared values
  float* mixed;                // (N + 1, M), weighted sums of the coefficients, the last of which is 1
};
}

namespace {

constexpr int kHeadWidth = 16, kMostTokens = 128;

// Blocks that are processed for one prompt before the next one's turn. They don't affect results.
constexpr int kStretch = 2;

// Rows and vectors of which a product keeps the sums in registers. They don't affect results.
#if defined(LANES_AVX512)
constexpr int kRows = 8, kWide = 2;
#else
constexpr int kRows = 4, kWide = 1;
#endif

// Return heads queries, rounded up to a multiple of 32.
inline int width_of(const Step& step) { return (step.heads * step.queries + 31) / 32 * 32; }

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// Call f(start, Count<n>) for tiles of n rows, at most kRows.
template <class Function>
inline void tiles(int rows, Function f) {
  int start = 0;
  for (; start + kRows <= rows; start += kRows) f(start, Count<kRows>());
  switch (rows - start) {
    case 1: return f(start, Count<1>());
    case 2: return f(start, Count<2>());
    case 3: return f(start, Count<3>());
#if defined(LANES_AVX512)
    case 4: return f(start, Count<4>());
    case 5: return f(start, Count<5>());
    case 6: return f(start, Count<6>());
    case 7: return f(start, Count<7>());
#endif
  }
}

// Return exp(x) for x of at most 0, and exp(-87) below -87. Before rounding, the polynomial is off by 5e-9.
inline V exponential(V x) {
  constexpr float kPowers[8] = {1.0f, 1.0f, 0.5f, 0x1.555556p-3f, 0x1.555556p-5f, 0x1.111112p-7f, 0x1.6c16c2p-10f,
                               0x1.a01a02p-13f};
  x = max(broadcast(-87), x);
  V powers = whole(fma(x, broadcast(0x1.715476p+0f), broadcast(-0.5f)));
  V rest = fma(powers, broadcast(-0x1.62e4p-1f), x);       // ln 2 in two parts, the first one short
  rest = fma(powers, broadcast(-0x1.7f7d1cp-20f), rest);
  V sum = broadcast(kPowers[7]);
  for (int term = 6; term >= 0; --term) sum = fma(sum, rest, broadcast(kPowers[term]));
  return times_power_of_2(sum, powers);
}

// A head's scores (count, 32) between few vectors and the image: scale (few own) + few places + prior coefficients.
inline void score(const float* few, int count, const float* own, const float* places, const float* scale,
                  Factors prior, const float* coefficients, int terms, float* scores) {
  tiles(count, [&](int start, auto size) {
    const Factors rows = {few + start * kHeadWidth, kHeadWidth, 1};
    const Factors more = {prior.from + start * prior.row, prior.row, prior.term};
    for (int x = 0; x < kBlock; x += kWide * kLanes) {
      V sums[size.value][kWide];
      clear(sums);
      multiply(rows, own + x, kBlock, kHeadWidth, sums);
      if (places) {
        for (int v = 0; v < kWide; ++v) {
          V factor = load(scale + x + v * kLanes);
          for (int row = 0; row < size.value; ++row) sums[row][v] = sums[row][v] * factor;
        }
        multiply(rows, places + x, kBlock, kHeadWidth, sums);
      }
      float* out = scores + start * kBlock + x;
      for (int row = 0; row < size.value; ++row) {
        for (int v = 0; v < kWide; ++v) store(out + row * kBlock + v * kLanes, sums[row][v]);
      }
      for (int term = 0; term < terms; term += kTerms) {
        clear(sums);
        multiply(more.after(term), coefficients + term * kBlock + x, kBlock, group(term, terms), sums);
        for (int row = 0; row < size.value; ++row) {
          for (int v = 0; v < kWide; ++v) {
            float* at = out + row * kBlock + v * kLanes;
            store(at, load(at) + sums[row][v]);
          }
        }
      }
    }
  });
}

// Replace scores (count, 32) by their softmax over the rows.
inline void soften(float* scores, int count) {
  for (int x = 0; x < kBlock; x += kLanes) {
    V most = load(scores + x), sum = broadcast(0);
    for (int row = 1; row < count; ++row) most = max(most, load(scores + row * kBlock + x));
    for (int row = 0; row < count; ++row) {
      V weight = exponential(load(scores + row * kBlock + x) - most);
      sum = sum + weight;
      store(scores + row * kBlock + x, weight);
    }
    V share = broadcast(1) / sum;
    for (int row = 0; row < count; ++row) {
      store(scores + row * kBlock + x, load(scores + row * kBlock + x) * share);
    }
  }
}

// Sums over rows for a block of positions, which are added to larger sums as a whole: this keeps rounding errors small.
struct Sums {
  float values[kBlock] = {};

  // Add products of coefficients (rows, 32) and a tile.
  template <int kCount>
  void add(const float* coefficients, int x, const V (&tile)[kCount][kWide]) {
    for (int v = 0; v < kWide; ++v) {
      float* at = values + x + v * kLanes;
      V total = load(at);
      for (int row = 0; row < kCount; ++row) {
        total = fma(load(coefficients + row * kBlock + x + v * kLanes), tile[row][v], total);
      }
      store(at, total);
    }
  }

  void add_to(float* totals) const {
    for (int x = 0; x < kBlock; x += kLanes) store(totals + x, load(totals + x) + load(values + x));
  }
};

// Add to `squares` 2 s c l of `count` rows with coefficients c. Their vectors' products l with the shared image are
// those of `values` (count, 16) and `projected` (16, 32), or `projected` (count, 32) itself without values.
inline void add_linear(int count, const float* values, const float* projected, const float* scale,
                       const float* coefficients, float* squares) {
  Sums sums;
  tiles(count, [&](int start, auto size) {
    for (int x = 0; x < kBlock; x += kWide * kLanes) {
      V tile[size.value][kWide];
      clear(tile);
      if (values) multiply({values + start * kHeadWidth, kHeadWidth, 1}, projected + x, kBlock, kHeadWidth, tile);
      for (int v = 0; v < kWide; ++v) {
        const float* own = projected + start * kBlock + x + v * kLanes;
        V factor = load(scale + x + v * kLanes), twice = factor + factor;
        for (int row = 0; row < size.value; ++row) {
          tile[row][v] = (values ? tile[row][v] : load(own + row * kBlock)) * twice;
        }
      }
      sums.add(coefficients + start * kBlock, x, tile);
    }
  });
  sums.add_to(squares);
}

// Add to `squares` c G c, with coefficients c (rows, 32) and a lower triangular matrix G (rows, rows).
inline void add_quadratic(int rows, const float* gram, const float* coefficients, float* squares) {
  for (int term = 0; term < rows; term += kTerms) {
    Sums sums;
    tiles(rows - term, [&](int start, auto size) {
      const float* factors = gram + (term + start) * rows + term;
      const int terms = start + size.value < kTerms ? start + size.value : kTerms;  // the others are 0
      for (int x = 0; x < kBlock; x += kWide * kLanes) {
        V tile[size.value][kWide];
        clear(tile);
        multiply({factors, rows, 1}, coefficients + term * kBlock + x, kBlock, terms, tile);
        sums.add(coefficients + (term + start) * kBlock, x, tile);
      }
    });
    sums.add_to(squares);
  }
}

// Let a block's positions attend to the tokens, and normalize them. `coefficients` (N + 1, 32) are the block's.
inline void answer(const Step& step, const Tokens& prompt, int block, int count, float* coefficients) {
  const int width = step.heads * kHeadWidth, fresh = step.heads * step.tokens, prior = count - fresh;
  float* scale = prompt.scale + block * kBlock;
  for (int head = 0; head < step.heads; ++head) {
    const int64_t map = (static_cast<int64_t>(block) * width + head * kHeadWidth) * kBlock;
    const int first = head * step.tokens;
    score(prompt.keys + first * kHeadWidth, step.tokens, step.answer_own + map,
          step.answer_places ? step.answer_places + map : nullptr, scale,
          {prompt.answer_prior + first * prior, prior, 1}, coefficients + fresh * kBlock, prior,
          coefficients + first * kBlock);
    soften(coefficients + first * kBlock, step.tokens);
  }

  float squares[kBlock];
  for (int x = 0; x < kBlock; x += kLanes) {
    V factor = load(scale + x);
    store(squares + x, load(step.squares + block * kBlock + x) * (factor * factor));
  }
  const int maps = step.steps * step.heads;
  for (int map = 0; map < maps; ++map) {
    const float* projected = step.projected + (static_cast<int64_t>(block) * maps + map) * kHeadWidth * kBlock;
    const int first = map * step.tokens;
    const float* values = prompt.values + first * kHeadWidth;
    add_linear(step.tokens, values, projected, scale, coefficients + first * kBlock, squares);
  }
  const float* constants = step.constants + static_cast<int64_t>(block) * step.constant_rows * kBlock;
  const float* last = coefficients + maps * step.tokens * kBlock;
  add_linear(step.constant_rows, nullptr, constants, scale, last, squares);
  add_quadratic(count, prompt.gram, coefficients, squares);

  for (int x = 0; x < kBlock; x += kLanes) {
    V mean = load(squares + x) / broadcast(static_cast<float>(step.channels));
    V shrink = broadcast(1) / root(mean + broadcast(step.epsilon));
    store(scale + x, load(scale + x) * shrink);
    for (int row = 0; row < count; ++row) {
      store(coefficients + row * kBlock + x, load(coefficients + row * kBlock + x) * shrink);
    }
    store(coefficients + count * kBlock + x, broadcast(1));
  }
}

// Turn the block's scores (32, queries) into weights relative to the largest scores so far, and the sums so far, too.
inline void weigh(const Step& step, const Tokens& prompt, int rows, float* scores) {
  const int width = width_of(step);
  for (int v = 0; v < width / kLanes; ++v) {
    float* column = scores + v * kLanes;
    V before = load(prompt.largest + v * kLanes), most = before;
    for (int position = 0; position < kBlock; ++position) {
      most = max(most, load(column + position * width));
    }
    for (int position = 0; position < kBlock; ++position) {
      store(column + position * width, exponential(load(column + position * width) - most));
    }
    if (!above(most, before)) continue;
    V less = exponential(before - most);
    store(prompt.largest + v * kLanes, most);
    for (int row = 0; row < rows; ++row) {
      float* at = prompt.mixed + row * width + v * kLanes;
      store(at, load(at) * less);
    }
    float factors[kLanes];
    store(factors, less);
    for (int lane = 0; lane < kLanes && v * kLanes + lane < step.heads * step.queries; ++lane) {
      float* at = prompt.own + (v * kLanes + lane) * kHeadWidth;
      store(at, load(at) * broadcast(factors[lane]));
    }
  }
}

// Let the tokens attend to a block's positions: add the block's sums to `own` and `mixed`.
inline void look(const Step& step, const Tokens& prompt, int block, int rows, const float* coefficients) {
  const int channels = step.heads * kHeadWidth, queries = step.heads * step.queries, width = width_of(step);
  const float* scale = prompt.scale + block * kBlock;
  float scores[kMostTokens * kBlock], weights[kBlock * kMostTokens];
  memset(scores + queries * kBlock, 0, (width - queries) * kBlock * sizeof(float));
  for (int head = 0; head < step.heads; ++head) {
    const int64_t map = (static_cast<int64_t>(block) * channels + head * kHeadWidth) * kBlock;
    const int first = head * step.queries;
    score(prompt.queries + first * kHeadWidth, step.queries, step.look_own + map, step.look_places + map, scale,
          {prompt.look_prior + first * rows, rows, 1}, coefficients, rows, scores + first * kBlock);
  }
  for (int query = 0; query < width; query += kLanes) {
    for (int x = 0; x < kBlock; x += kLanes) {
      transpose(scores + query * kBlock + x, kBlock, weights + x * width + query, width);
    }
  }
  weigh(step, prompt, rows, weights);

  tiles(rows, [&](int start, auto size) {
    for (int query = 0; query < width; query += kWide * kLanes) {
      V sums[size.value][kWide];
      clear(sums);
      multiply({coefficients + start * kBlock, kBlock, 1}, weights + query, width, kBlock, sums);
      for (int row = 0; row < size.value; ++row) {
        for (int i = 0; i < kWide; ++i) {
          float* at = prompt.mixed + (start + row) * width + query + i * kLanes;
          store(at, load(at) + sums[row][i]);
        }
      }
    }
  });
  float values[kBlock * kHeadWidth];
  for (int head = 0; head < step.heads; ++head) {
    const float* from = step.look_values + static_cast<int64_t>(block) * kBlock * channels + head * kHeadWidth;
    for (int position = 0; position < kBlock; ++position) {
      store(values + position * kHeadWidth, load(from + position * channels) * broadcast(scale[position]));
    }
    const int first = head * step.queries;
    tiles(step.queries, [&](int start, auto size) {
      V sums[size.value][1];
      clear(sums);
      multiply({weights + first + start, 1, width}, values, kHeadWidth, kBlock, sums);
      for (int row = 0; row < size.value; ++row) {
        float* at = prompt.own + (first + start + row) * kHeadWidth;
        store(at, load(at) + sums[row][0]);
      }
    });
  }
}

inline void take_step(const Step& step, const Tokens* prompts, int count) {
  const int vectors = step.steps * step.heads * step.tokens + step.constant_rows, width = width_of(step);
  for (int prompt = 0; prompt < count; ++prompt) {
    for (int query = 0; query < width; ++query) prompts[prompt].largest[query] = -INFINITY;
    memset(prompts[prompt].own, 0, step.heads * step.queries * kHeadWidth * sizeof(float));
    memset(prompts[prompt].mixed, 0, (vectors + 1) * width * sizeof(float));
  }
  for (int start = 0; start < step.blocks; start += kStretch) {
    const int end = start + kStretch < step.blocks ? start + kStretch : step.blocks;
    for (int prompt = 0; prompt < count; ++prompt) {
      for (int block = start; block < end; ++block) {
        float* all = prompts[prompt].coefficients + static_cast<int64_t>(block) * step.rows * kBlock;
        float* from = all + step.first * kBlock;
        answer(step, prompts[prompt], block, vectors, from);
        look(step, prompts[prompt], block, vectors + 1, from);
      }
    }
  }
}

}  // namespace
