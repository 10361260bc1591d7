"""Zero-shot single-point segmentation (SAM paper, Section 7.1)."""
