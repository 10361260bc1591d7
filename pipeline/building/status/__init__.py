"""`segmint status`: the progress of one or more builds."""
