"""Kernels in C++ for the CPU: one source for several instruction sets, with the same bits from all of them."""
