"""Zero-shot object proposals (SAM paper, Section 7.3)."""
