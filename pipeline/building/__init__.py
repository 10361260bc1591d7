"""The parts of a build around `pipeline/build.py`."""
