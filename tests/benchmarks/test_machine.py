"""What a result says about the machine it was measured on."""

import json
import os

from benchmarks.machine import describe_machine, processor


def test_the_machine_is_described_as_json() -> None:
    described = json.loads(json.dumps(describe_machine(2, "fp32", packages=("pyarrow", "opencv-python-headless"))))
    assert described["cpu"] == processor() != ""
    assert (described["cores"], described["threads"], described["precision"]) == (os.cpu_count(), 2, "fp32")
    assert described["pyarrow"]
    assert described["opencv_python_headless"]
