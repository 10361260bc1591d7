"""The second stage: generate the masks of one prepared image."""
