"""`python -m tests.support.overlapped` is `segmint`, with a CPU's segment actors set up as those of a GPU are."""

from unittest import mock

from segmint.operators.segment.overlap import HostThreads
from segmint.pipeline.commands.cli import main

if __name__ == "__main__":
    with mock.patch.object(HostThreads, "of", return_value=HostThreads.of("cuda")):
        main()
