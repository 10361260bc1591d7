"""Faults in recognizing copies of pictures, for `make mutants`."""

from tests.support.mutant import Mutant

COPIES_MUTANTS = (
    Mutant(
        "a pixel that two cells share counts for one of them",
        "operators/similar/hashes.py",
        "parts * whole - cut[:-1] + cut[1:]",
        "parts * whole",
        "tests/operators/similar/test_hashes.py",
    ),
    Mutant(
        "averages are rounded down",
        "operators/similar/hashes.py",
        "(2 * scale * sums + values.size)",
        "(2 * scale * sums)",
        "tests/operators/similar/test_hashes.py",
    ),
    Mutant(
        "a picture turned by 90 degrees is hashed as turned by 270",
        "operators/similar/hashes.py",
        "[frame * across, frame.T * down, frame * across * down, frame.T * across]",
        "[frame * across, frame.T * across, frame * across * down, frame.T * down]",
        "tests/operators/similar/test_hashes.py",
    ),
    Mutant(
        "images without structure look alike",
        "operators/audit/similar_images.py",
        " & (hashes != NO_HASH)",
        "",
        "tests/operators/audit/test_similar_images.py",
    ),
    Mutant(
        "the pixels of a removed picture are built again",
        "operators/prepare/prepare.py",
        "if self._judge.taken.names_picture(released):",
        "if False:",
        "tests/operators/prepare/test_prepare.py",
    ),
    Mutant(
        "a committed copy of a removed picture stays",
        "catalogs/dataset/tombstones.py",
        '        same = row["pixels_sha256"] in self.pictures or row["release_sha256"] in self.pictures\n',
        "        same = False\n",
        "tests/operators/shards/test_revise.py",
    ),
    Mutant(
        "the pixels of a picture that stays keep others out",
        "pipeline/corrections/takedown_list.py",
        "not stays.isdisjoint(same.digests.get(ordinal, ()))",
        "False",
        "tests/pipeline/corrections/test_takedown.py",
    ),
    Mutant(
        "a takedown leaves copies with the same pixels",
        "catalogs/dataset/selection.py",
        "            for name in _PICTURES:\n",
        "            for name in _PICTURES[:1]:\n",
        "tests/catalogs/dataset/test_selection.py",
    ),
    Mutant(
        "a writer of fingerprints that slept loses what it adds",
        "catalogs/dataset/fingerprints.py",
        "if _generations(dataset, shard)[-1] > latest + 1:",
        "if False:",
        "tests/catalogs/dataset/test_fingerprints.py",
    ),
    Mutant(
        "what was forgotten is stored again",
        "catalogs/dataset/fingerprints.py",
        "        if self.forgotten:\n",
        "        if False:\n",
        "tests/catalogs/dataset/test_fingerprints.py",
    ),
    Mutant(
        "the digest does not cover fingerprints",
        "catalogs/dataset/versions/digest.py",
        "    return [*tombstones, *(fingerprints_path(",
        "    return [*tombstones] or [*(fingerprints_path(",
        "tests/pipeline/corrections/test_takedown.py",
    ),
    Mutant(
        "pictures that a person told apart are listed",
        "operators/shards/near_copies.py",
        " and (id, tombstone) not in wanted.others",
        "",
        "tests/operators/shards/test_near_copies.py",
    ),
    Mutant(
        "a copy cropped on all sides is not near",
        "operators/shards/near_copies.py",
        "{(FRAME, view), (view, FRAME)}",
        "{(view, view)}",
        "tests/operators/shards/test_near_copies.py",
    ),
    Mutant(
        "a proof ends well beside near copies",
        "pipeline/corrections/proof.py",
        '    search.found += [\n        f"{each.line()}; {advice}"',
        '    search.gone += [\n        f"{each.line()}; {advice}"',
        "tests/pipeline/corrections/test_fingerprints.py",
    ),
)
