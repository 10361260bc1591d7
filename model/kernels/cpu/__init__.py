"""Kernels in C++ for the CPU. One source serves several instruction sets, and all of them give the same bits."""
