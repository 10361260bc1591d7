"""The files of a dataset: manifest, commits, reservations, tombstones, and the reader that everything else uses."""
