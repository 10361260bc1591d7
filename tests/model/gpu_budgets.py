"""What the GPU path may cost, in one place; tests count it without a GPU. No figure here was measured on one.

The full recipe is SA-1B's (SAM paper, Appendix B): 21 crops and 3,072 prompts an image, of which the host makes 24
chunks. A CUDA graph's replay counts as one launch. Traffic is what kernels read and write if nothing stays in a cache
between two of them.
"""

# Read and written by all kernels of the compiled ViT-H encoder for one image, in batches of 7, as
# `tests/support/kernel_traffic.py` counts it: 13.3e9. Eager, without the attention kernels, it was 34e9.
ENCODER_BYTES = 15_000_000_000

# What the host starts for an image of the full recipe, in three parts; a library's kernel counts as one launch.
HOST_LAUNCHES_AN_IMAGE = 1_430
# 68 to cut, resize and normalize the crops, as `tests/support/pretended_cuda.py` counts them. It was 425.
CUT_LAUNCHES_AN_IMAGE = 69
# 326 for a batch of the compiled ViT-H encoder, as `tests/support/kernel_traffic.py` counts them.
ENCODER_LAUNCHES_A_BATCH = 330
# For all that follows, where it was about 20,000, then 1,015.
MASK_LAUNCHES_AN_IMAGE = 370
# The host starts this for a full image without crops and 1,024 points, encoded alone and in a batch of 8.
FULL_IMAGE_LAUNCHES = 450
FULL_IMAGE_LAUNCHES_IN_A_BATCH = 200

# The host waits for a crop's numbers, and for the runs of the masks that are left, each after it has started another
# crop.
HOST_SYNCS_A_CROP = 2

# Kernels inside the graphs of a chunk and of its image's plan.
REPLAYED_KERNELS_A_CHUNK = 300

# Read and written for one prompt in bfloat16, in chunks of 256, from the plan to low-resolution logits: 9.65e6. It was
# 108e6.
DECODER_BYTES_A_PROMPT = 10_000_000
