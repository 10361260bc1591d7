// Masks at the crop's resolution from low-resolution logits: counts and boxes without drawing, and drawing.
//
// A pixel is a weighted mean of 3x3 adjacent low-resolution logits. All pixels that use the same nine form a cell. If
// the nine are all above +offset or all at or below -offset, so are the cell's pixels, and none is computed. Only cells
// at a mask's border are. `visit` makes every decision, for counting and for drawing, so both have the same pixels.

#pragma once

#include <float.h>
#include <string.h>

#include "lanes16.h"

extern "C" {

// Interpolation along one axis from `side` logits to `pixels`. A pixel uses the three logits from `places` on.
struct Axis {
  const int32_t* places;  // (padded), not decreasing; repeats the last one after `pixels`
  const float* weights;   // (3, padded), 0 after `pixels`
  const int32_t* starts;  // (side + 1), the first pixel whose place is at or after a logit
  int32_t pixels;
  int32_t padded;  // pixels rounded up to whole vectors, plus one vector
};

// Part of a mask's low-resolution logits, which includes all that its cells use.
struct Window {
  const float* logits;  // (rows, columns)
  int32_t top, left;    // of the first logit
  int32_t rows;
  int32_t columns;  // a multiple of 16, from 32 to 1024
};
}

namespace {

constexpr int kTaps = 3;
constexpr int kMostColumns = 1024;

// Bits of the cells of one row.
struct Cells {
  uint64_t words[kMostColumns / 64];

  // Return the first cell from `from` on whose bit is `wanted`, or `end`.
  int find(int from, int end, bool wanted) const {
    while (from < end) {
      uint64_t word = words[from >> 6];
      word = (wanted ? word : ~word) >> (from & 63);
      if (word) {
        from += __builtin_ctzll(word);
        return from < end ? from : end;
      }
      from = (from | 63) + 1;
    }
    return end;
  }

  void set(int first, Mask bits) {
    uint64_t* word = &words[first >> 6];
    if ((first & 63) == 0) *word = 0;
    *word |= static_cast<uint64_t>(bits) << (first & 63);
  }
};

// Find the cells of a row that lie inside all three masks, and those at a border; `row` is relative to the window.
// Return false if there are none. The bits of the last two columns, which begin no cell, are arbitrary.
inline bool classify(const Window& window, int row, V high, V low, Cells* inside, Cells* border) {
  float least[kMostColumns + kLanes], most[kMostColumns + kLanes];
  const float* first = window.logits + static_cast<int64_t>(row) * window.columns;
  for (int x = 0; x < window.columns; x += kLanes) {
    V a = load(first + x), b = load(first + window.columns + x), c = load(first + 2 * window.columns + x);
    store(least + x, min(min(a, b), c));
    store(most + x, max(max(a, b), c));
  }
  store(least + window.columns, broadcast(0));
  store(most + window.columns, broadcast(0));
  Mask any = 0;
  for (int x = 0; x < window.columns; x += kLanes) {
    V smallest = min(min(load(least + x), load(least + x + 1)), load(least + x + 2));
    V largest = max(max(load(most + x), load(most + x + 1)), load(most + x + 2));
    Mask in = above(smallest, high), out = at_most(largest, low);
    inside->set(x, in);
    border->set(x, ~(in | out) & 0xffff);
    any |= ~out & 0xffff;
  }
  return any != 0;
}

// Compute the pixels of the border cells in `columns` (x0 to x1) of one row of cells (y0 to y1), 16 columns at a time.
template <class Sink>
inline void compute(const Window& window, int row, const Axis& down, const Axis& across, int y0, int y1, int x0, int x1,
                    Sink* sink) {
  const float* first = window.logits + static_cast<int64_t>(row) * window.columns;
  const float *r0 = down.weights, *r1 = r0 + down.padded, *r2 = r1 + down.padded;
  for (int x = x0; x < x1; x += kLanes) {
    int32_t places[kLanes];
    for (int i = 0; i < kLanes; ++i) places[i] = across.places[x + i] - window.left;
    V logits[kTaps];
    for (int tap = 0; tap < kTaps; ++tap) {
      const float* logit = first + static_cast<int64_t>(tap) * window.columns;
      V sum = load(across.weights + x) * pick_places(logit, window.columns, places);
      sum = fma(load(across.weights + across.padded + x), pick_places(logit + 1, window.columns - 1, places), sum);
      sum = fma(load(across.weights + 2 * across.padded + x), pick_places(logit + 2, window.columns - 2, places), sum);
      logits[tap] = sum;
    }
    Mask valid = x1 - x >= kLanes ? 0xffff : (1u << (x1 - x)) - 1;
    sink->begin(x);
    for (int y = y0; y < y1; ++y) {
      V value = broadcast(r0[y]) * logits[0];
      value = fma(broadcast(r1[y]), logits[1], value);
      value = fma(broadcast(r2[y]), logits[2], value);
      sink->pixels(x, y, valid, value);
    }
    sink->end(x);
  }
}

// Send all pixels that may be above -offset to the sink: whole rectangles, and vectors of computed logits.
template <class Sink>
inline void visit(const Window& window, const Axis& down, const Axis& across, float offset, const bool* lively,
                  Sink* sink) {
  V high = broadcast(offset), low = broadcast(-offset);
  const int cells = window.columns - kTaps + 1;
  for (int row = 0; row + kTaps <= window.rows; ++row) {
    int y0 = down.starts[window.top + row], y1 = down.starts[window.top + row + 1];
    if (y0 == y1 || !(lively[row] || lively[row + 1] || lively[row + 2])) continue;
    Cells inside, border;
    if (!classify(window, row, high, low, &inside, &border)) continue;
    const int32_t* starts = across.starts + window.left;
    for (int cell = inside.find(0, cells, true); cell < cells;) {
      int end = inside.find(cell, cells, false);
      if (starts[cell] < starts[end]) sink->rectangle(starts[cell], starts[end], y0, y1);
      cell = inside.find(end, cells, true);
    }
    for (int cell = border.find(0, cells, true); cell < cells;) {
      int end = border.find(cell, cells, false);
      compute(window, row, down, across, y0, y1, starts[cell], starts[end], sink);
      cell = border.find(end, cells, true);
    }
  }
}

// Mark the rows that contain a logit above -offset. Return false if a logit is not finite.
inline bool find_lively(const Window& window, float offset, bool* lively) {
  V low = broadcast(-offset), largest = broadcast(FLT_MAX);
  Mask finite = 0xffff;
  for (int row = 0; row < window.rows; ++row) {
    const float* logits = window.logits + static_cast<int64_t>(row) * window.columns;
    Mask any = 0;
    for (int x = 0; x < window.columns; x += kLanes) {
      V logit = load(logits + x);
      any |= above(logit, low);
      finite &= at_most(absolute(logit), largest);
    }
    lively[row] = any != 0;
  }
  return finite == 0xffff;
}

struct Counter {
  V high, low, zero;
  int64_t inner = 0, area = 0, outer = 0;
  int x0 = INT32_MAX, y0 = INT32_MAX, x1 = -1, y1 = -1;
  Mask columns = 0;

  explicit Counter(float offset) : high(broadcast(offset)), low(broadcast(-offset)), zero(broadcast(0)) {}

  void extend(int left, int right, int top, int bottom) {
    x0 = left < x0 ? left : x0;
    x1 = right > x1 ? right : x1;
    y0 = top < y0 ? top : y0;
    y1 = bottom > y1 ? bottom : y1;
  }
  void rectangle(int left, int right, int top, int bottom) {
    int64_t pixels = static_cast<int64_t>(right - left) * (bottom - top);
    inner += pixels, area += pixels, outer += pixels;
    extend(left, right - 1, top, bottom - 1);
  }
  void begin(int) { columns = 0; }
  void pixels(int, int y, Mask valid, V value) {
    Mask over = above(value, zero) & valid;
    inner += count(above(value, high) & valid);
    area += count(over);
    outer += count(above(value, low) & valid);
    columns |= over;
    if (over) y0 = y < y0 ? y : y0, y1 = y > y1 ? y : y1;
  }
  void end(int x) {
    if (columns == 0) return;
    int left = x + __builtin_ctz(columns), right = x + 31 - __builtin_clz(columns);
    x0 = left < x0 ? left : x0;
    x1 = right > x1 ? right : x1;
  }
};

struct Painter {
  uint8_t* mask;  // the box's pixels, 0 at first
  int left, top, right, bottom;
  V zero;

  uint8_t* row(int y) const { return mask + static_cast<int64_t>(y - top) * (right - left + 1); }
  void rectangle(int x0, int x1, int y0, int y1) {
    for (int y = y0; y < y1; ++y) memset(row(y) + x0 - left, 1, x1 - x0);
  }
  void begin(int) {}
  void pixels(int x, int y, Mask valid, V value) {
    for (Mask over = above(value, zero) & valid; over; over &= over - 1) row(y)[x + __builtin_ctz(over) - left] = 1;
  }
  void end(int) {}
};

// Write the counts above +offset, 0, and -offset, and the box x0, y0, x1, y1 of those above 0, ends inclusive; all zeros
// for an empty mask. Return false if a logit is not finite.
inline bool measure_mask(const Window& window, const Axis& down, const Axis& across, float offset, int64_t* numbers) {
  bool lively[kMostColumns];
  if (!find_lively(window, offset, lively)) return false;
  Counter counter(offset);
  visit(window, down, across, offset, lively, &counter);
  bool empty = counter.area == 0;
  int64_t found[7] = {counter.inner,          counter.area,           counter.outer,         empty ? 0 : counter.x0,
                      empty ? 0 : counter.y0, empty ? 0 : counter.x1, empty ? 0 : counter.y1};
  memcpy(numbers, found, sizeof found);
  return true;
}

}  // namespace
