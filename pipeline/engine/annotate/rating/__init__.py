"""`segmint annotate --stage rate`: blind ratings of masks."""
