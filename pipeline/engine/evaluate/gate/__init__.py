"""The gate: decide whether new weights are better than old ones."""
