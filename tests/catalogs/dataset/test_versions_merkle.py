"""The Merkle tree, against RFC 6962's definition and the vectors of its reference implementation."""

import hashlib
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.dataset.digest import leaf_hash, root_hash

# Inputs and roots of certificate-transparency's own tests (merkletree/merkle_tree_test.cc).
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def test_roots_are_those_of_the_reference_implementation() -> None:
    leaves = [leaf_hash(bytes.fromhex(text)) for text in INPUTS]
    assert [root_hash(leaves[:count]).hex() for count in range(len(leaves) + 1)] == ROOTS


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=70))
def test_any_number_of_leaves_gives_the_root_of_the_definition(entries: list[bytes]) -> None:
    def defined(items: Sequence[bytes]) -> bytes:
        if len(items) == 1:
            return hashlib.sha256(b"\x00" + items[0]).digest()
        split = 1 << ((len(items) - 1).bit_length() - 1)
        return hashlib.sha256(b"\x01" + defined(items[:split]) + defined(items[split:])).digest()

    assert root_hash([leaf_hash(entry) for entry in entries]) == defined(entries)
