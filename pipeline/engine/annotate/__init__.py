"""`segmint annotate`: the annotation server, its queue, and its pages."""
