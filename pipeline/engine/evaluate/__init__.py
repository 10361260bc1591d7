"""`segmint evaluate`: the paper's zero-shot experiments, and the shared parts of all of them."""
