// Results of each operation of lanes16.h, to compare back ends. test_neon.py has the operations' names.

#include "lanes16.h"

namespace {

constexpr int kOperations = 17, kWidth = 21, kTransposed = 16 * kWidth;

inline V numbered(Mask mask) { return broadcast(static_cast<float>(mask)); }

// Return whole numbers from 0 to 7 that depend on the vector's number and the lane.
inline V table_places(int64_t number) {
  float places[kLanes];
  for (int i = 0; i < kLanes; ++i) places[i] = static_cast<float>((number * 5 + i * 3) % 8);
  return load(places);
}

// Return whole numbers from -126 to 127.
inline V powers_of_2(int64_t number) {
  float powers[kLanes];
  for (int i = 0; i < kLanes; ++i) powers[i] = static_cast<float>((number * 16 + i) % 254 - 126);
  return load(powers);
}

// Return floats from 2 to 50 places apart, so that some are near each other, of a row that ends at the last one.
inline V picked(const float* row, int64_t number) {
  int32_t places[kLanes];
  for (int i = 0; i < kLanes; ++i) places[i] = static_cast<int32_t>(number % 5 + i * (number % 11 + 1) / 3);
  return pick_places(row, places[15] + 1 < kLanes ? kLanes : places[15] + 1, places);
}

}  // namespace

extern "C" __attribute__((visibility("default")))
// Write results (count, kOperations, 16) of inputs x, y, and z (count, 16), and a part (16, 16) of x transposed into
// (16, kWidth). x has 64 more floats.
void operations(const float* x, const float* y, const float* z, int64_t count, float* results, float* transposed) {
  for (int64_t number = 0; number < count; ++number, results += kOperations * kLanes) {
    V a = load(x + number * kLanes), b = load(y + number * kLanes), c = load(z + number * kLanes);
    Mask bits = above(a, b);
    V found[kOperations] = {
        load(x + number * kLanes + 1), broadcast(x[number * kLanes]), a + b, a - b, a * b, a / b, fma(a, b, c),
        min(a, b), max(a, b), absolute(a), root(a), whole(a), numbered(bits), numbered(at_most(a, b)),
        pick(x + number * kLanes, table_places(number)), times_power_of_2(a, powers_of_2(number)),
        picked(x + number * kLanes, number)};
    for (int i = 0; i < kOperations; ++i) store(results + i * kLanes, found[i]);
  }
  transpose(x, kWidth + 1, transposed, kWidth);
}
