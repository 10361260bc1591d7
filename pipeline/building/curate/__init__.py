"""`segmint catalog curate`: reject duplicates and unfit images before a build."""
