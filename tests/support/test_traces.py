"""The finder of traces finds one run of 64 bytes, across the border of its chunks too, and no more."""

from pathlib import Path

import numpy as np

from tests.support.traces import files_with_traces, telling_windows


def test_a_single_run_is_found_wherever_it_stands(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    secret = random.bytes(5000)
    needles = telling_windows(secret)
    noise = random.bytes(300)
    (tmp_path / "clean").write_bytes(random.bytes(1000))
    (tmp_path / "short").write_bytes(noise + secret[700:763] + noise)
    (tmp_path / "run").write_bytes(noise + secret[700:764] + noise)
    (tmp_path / "end").write_bytes(noise + secret[-64:])
    assert [path.name for path in files_with_traces(needles, [tmp_path], chunk=100)] == ["end", "run"]
    assert [path.name for path in files_with_traces(needles, [tmp_path])] == ["end", "run"]
