// Calls a function of a library as another process would, whose arguments are in a file: replay LIBRARY FUNCTION FILE.
//
// The file consists of int64: the number of blocks and of pointers, each block's size in bytes, each pointer's block,
// offset, and target block, and then the blocks. Block 0 has the arguments: 7 words, a float, and room for the return
// value. Afterwards, the file has the same blocks with the function's output.

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <vector>

namespace {

constexpr int kWords = 7;

// Integers and floats have registers of their own, so one type fits functions with these arguments in any order.
using Function = int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float);

struct Pointer {
  int64_t block, offset, target;
};

}  // namespace

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  void* symbol = library ? dlsym(library, arguments[2]) : nullptr;
  FILE* file = fopen(arguments[3], "r+b");
  if (!symbol || !file) return fprintf(stderr, "%s\n", symbol ? "no such file" : dlerror()), 1;

  int64_t counts[2];
  bool read = fread(counts, sizeof counts, 1, file) == 1;
  std::vector<int64_t> sizes(counts[0]);
  std::vector<Pointer> pointers(counts[1]);
  read = read && fread(sizes.data(), sizeof(int64_t), sizes.size(), file) == sizes.size();
  read = read && fread(pointers.data(), sizeof(Pointer), pointers.size(), file) == pointers.size();
  long start = ftell(file);
  std::vector<std::vector<char>> blocks;
  for (int64_t size : sizes) {
    blocks.emplace_back(size);
    read = read && fread(blocks.back().data(), 1, size, file) == static_cast<size_t>(size);
  }
  if (!read) return fprintf(stderr, "the file is too short\n"), 1;

  for (const Pointer& pointer : pointers) {
    const char* target = blocks[pointer.target].data();
    memcpy(blocks[pointer.block].data() + pointer.offset, &target, sizeof target);
  }
  int64_t words[kWords + 2];
  memcpy(words, blocks[0].data(), sizeof words);
  float number;
  memcpy(&number, words + kWords, sizeof number);
  auto function = reinterpret_cast<Function>(symbol);
  int64_t result = function(words[0], words[1], words[2], words[3], words[4], words[5], words[6], number);
  memcpy(blocks[0].data() + (kWords + 1) * sizeof(int64_t), &result, sizeof result);

  fseek(file, start, SEEK_SET);
  for (const auto& block : blocks) fwrite(block.data(), 1, block.size(), file);
  return fclose(file);
}
