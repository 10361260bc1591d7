"""What the GPU path may cost, in one place; tests count it without a GPU. No figure here was measured on one."""

# Read and written by all kernels of the compiled ViT-H encoder for one image, in batches of 7, as
# `tests/support/kernel_traffic.py` counts it: 13.3e9. Eager, without the attention kernels, it was 34e9.
ENCODER_BYTES = 15_000_000_000
