"""Zero-shot instance segmentation (SAM paper, Section 7.4)."""
