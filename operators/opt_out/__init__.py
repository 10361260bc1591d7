"""Reader of opt-outs from text and data mining in an image's metadata."""
