// Facts about the library and the CPU, compiled for any CPU.

#include <stdint.h>
#include <string.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Number of the functions' interface; library.py has the same number.
EXPORT int32_t segmint_interface() { return 5; }

// Hash of the sources and flags that the library was built from.
EXPORT const char* segmint_sources() { return SOURCES_HASH; }

// Return whether this CPU and its operating system support an instruction set of the library.
EXPORT int32_t segmint_supports(const char* set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
  if (strcmp(set, "avx2") == 0) return avx2;
  if (strcmp(set, "avx512") == 0) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
#elif defined(__aarch64__)
  if (strcmp(set, "neon") == 0) return true;  // every such CPU has it
#endif
  return strcmp(set, "scalar") == 0;
}
