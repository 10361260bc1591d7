"""Ray's provider of fake nodes, whose nodes take time to arrive as a cloud's do."""

import os
import time
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class SlowNodeProvider(FakeMultiNodeProvider):
    """Starts each node as processes of this machine, after `SEGMINT_TEST_NODE_SECONDS` of the environment."""

    def create_node_with_resources_and_labels(self, *arguments: Any, **named: Any) -> None:
        """Wait, then start the nodes."""
        time.sleep(float(os.environ.get("SEGMINT_TEST_NODE_SECONDS", "0")))
        super().create_node_with_resources_and_labels(*arguments, **named)
