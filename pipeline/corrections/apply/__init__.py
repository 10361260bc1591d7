"""`segmint apply`: run a segmenter or a stage over the committed images of a finished dataset."""
