"""The command line, one file per command, in the same groups as `segmint --help`."""
