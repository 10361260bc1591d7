// The library's functions for one instruction set, which LANES_NAME names: compiled once per set, with its own flags.

#include "border.h"
#include "decoding.h"
#include "drawing.h"

#define JOIN_AGAIN(name, set) name##_##set
#define JOIN(name, set) JOIN_AGAIN(name, set)
#define EXPORT(name) extern "C" __attribute__((visibility("default"))) JOIN(name, LANES_NAME)

// Measure `masks` masks of side x side logits each into numbers (masks, 7). Return 0, or the number of the first mask
// (from 1) with a logit that is not finite.
EXPORT(int64_t segmint_measure)
(const float* logits, int64_t masks, int32_t side, const Axis* down, const Axis* across, float offset,
 int64_t* numbers) {
  for (int64_t mask = 0; mask < masks; ++mask) {
    Window window = {logits + mask * side * side, 0, 0, side, side};
    if (!measure_mask(window, *down, *across, offset, numbers + 7 * mask)) return mask + 1;
  }
  return 0;
}

// Draw the pixels above 0 of a measured mask into (y1 - y0 + 1, x1 - x0 + 1) bytes of 0; `box` is x0, y0, x1, y1.
EXPORT(void segmint_draw_mask)
(const Window* window, const Axis* down, const Axis* across, float offset, const int64_t* box, uint8_t* mask) {
  bool lively[kMostColumns];
  find_lively(*window, offset, lively);
  Painter painter = {mask,
                     static_cast<int>(box[0]),
                     static_cast<int>(box[1]),
                     static_cast<int>(box[2]),
                     static_cast<int>(box[3]),
                     broadcast(0)};
  visit(*window, *down, *across, offset, lively, &painter);
}

// Take a step of the decoder for `count` prompts.
EXPORT(void segmint_take_step)(const Step* step, const Tokens* prompts, int32_t count) {
  take_step(*step, prompts, count);
}

// Draw low-resolution logits (masks, 4 side, 4 side) of a prompt for the blocks of positions from `start` to `end`.
// `scratch` has room for 256 rows + 8192 floats.
EXPORT(void segmint_draw_logits)
(const Upscaler* upscaler, const Prompt* prompt, int32_t start, int32_t end, float* scratch, float* logits) {
  draw(*upscaler, *prompt, start, end, scratch, logits);
}
