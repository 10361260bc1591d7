"""Zero-shot edge detection (SAM paper, Section 7.2)."""
