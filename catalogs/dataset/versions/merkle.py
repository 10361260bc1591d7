"""A Merkle tree over lines of text, as in RFC 6962: leaves and inner nodes are hashed with different prefixes."""

import hashlib
from collections.abc import Sequence

_LEAF = b"\x00"
_NODE = b"\x01"


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf, 32 bytes."""
    return hashlib.sha256(_LEAF + data).digest()


def root_hash(leaves: Sequence[bytes]) -> bytes:
    """Return the hash of a tree, 32 bytes, from the hashes of its leaves; without leaves, the SHA-256 of nothing.

    RFC 6962, section 2.1: of n > 1 leaves, the left subtree has the largest power of two that is below n.
    """
    if not leaves:
        return hashlib.sha256().digest()
    waiting: list[tuple[int, bytes]] = []  # whole subtrees from the left, each of fewer leaves than the one before
    for leaf in leaves:
        size, node = 1, leaf
        while waiting and waiting[-1][0] == size:
            size, node = 2 * size, _node_hash(waiting.pop()[1], node)
        waiting.append((size, node))
    node = waiting.pop()[1]
    while waiting:
        node = _node_hash(waiting.pop()[1], node)
    return node


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()
