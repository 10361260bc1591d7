"""One pass of a reader over a dataset, run as a separate process, possibly in another environment.

    python benchmarks/reading/sides.py tarfile|webdataset|mixed|streaming|segmint|batches FOLDER bytes|decoded|exact

For `bytes` and `decoded`, a short pass comes first, and then the command prints the seconds, CPU seconds, and number of
images of a full pass as JSON. For `exact`, it prints a hash of all JPEGs, pixels, and masks by image, which doesn't
depend on the order. `segmint` reads image by image like the others, and `batches` reads batches of eight. `mixed` is
WebDataset with its shuffle buffer. `streaming` reads `FOLDER/mds`, which `convert` writes from the tars, and the others
read `FOLDER/dataset`. Only segmint's own side imports segmint.
"""

import hashlib
import json
import sys
import tarfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

BATCH = 8
WARM = 200
MIXED = 1000  # images in WebDataset's shuffle buffer
MDS_BYTES = 64 << 20


class ReadResult(NamedTuple):
    """Image from a reader, with its number, its JPEG, (area, RLE counts) of its masks, and its pixels if decoded."""

    number: int
    jpeg: bytes
    masks: list[tuple[int, str]]
    pixels: Any


def main() -> None:
    """Read the dataset and print the results."""
    side, folder, mode = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if mode == "convert":
        convert(folder)
        return
    decode = mode != "bytes"
    if mode == "exact":
        print(json.dumps({"sha256": digest_of(SIDES[side](folder, decode))}))
        return
    consume(islice(SIDES[side](folder, decode), WARM))
    started, busy = time.perf_counter(), time.process_time()
    images, total = consume(SIDES[side](folder, decode))
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) >> 10
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "images": images, "sum": total, "peak_mib": peak}))


def consume(images: Iterator[ReadResult]) -> tuple[int, int]:
    """Count the images, and sum up numbers that depend on their bytes, sizes, and masks."""
    count = total = 0
    for image in images:
        count += 1
        total += len(image.jpeg) + sum(area + len(counts) for area, counts in image.masks)
        if image.pixels is not None:
            total += image.pixels.size
    return count, total


def digest_of(images: Iterator[ReadResult]) -> str:
    """Hash all data that was read, ordered by image number, with SHA-256."""
    found = {}
    for image in images:
        digest = hashlib.sha256(image.jpeg)
        digest.update(image.pixels.tobytes())
        digest.update(json.dumps(image.masks).encode())
        if image.number in found:
            raise SystemExit(f"image {image.number} was read twice")
        found[image.number] = digest.hexdigest()
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


def decoded(jpeg: bytes) -> Any:
    """Decode a JPEG with the decoder that all sides have."""
    import simplejpeg

    return simplejpeg.decode_jpeg(jpeg, colorspace="RGB")


def image_of(jpeg: bytes, document: bytes, decode: bool) -> ReadResult:
    """Build an image from its two files."""
    content = json.loads(document)
    masks = [(each["area"], each["segmentation"]["counts"]) for each in content["annotations"]]
    return ReadResult(content["image"]["image_id"], jpeg, masks, decoded(jpeg) if decode else None)


def tars(folder: Path) -> list[str]:
    """List the shards of a dataset that has only one generation of each."""
    return sorted(str(path) for path in (folder / "dataset" / "shards").glob("*.tar"))


def pairs(folder: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the JPEG and JSON of each image in a plain loop over the tars."""
    for path in tars(folder):
        with tarfile.open(path, "r:") as archive:
            jpeg = b""
            for member in archive:
                data = archive.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".jpg"):
                    jpeg = data
                else:
                    yield jpeg, data


def by_tarfile(folder: Path, decode: bool) -> Iterator[ReadResult]:
    """Read with the standard library in the order of the shards."""
    for jpeg, document in pairs(folder):
        yield image_of(jpeg, document, decode)


def by_webdataset(folder: Path, decode: bool) -> Iterator[ReadResult]:
    """Read with WebDataset in the order of the shards."""
    import webdataset

    for sample in webdataset.WebDataset(tars(folder), shardshuffle=False):
        yield image_of(sample["jpg"], sample["json"], decode)


def by_mixed(folder: Path, decode: bool) -> Iterator[ReadResult]:
    """Read with WebDataset, which shuffles the shards, and shuffles images in a buffer."""
    import webdataset

    shards = tars(folder)
    for sample in webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(MIXED):
        yield image_of(sample["jpg"], sample["json"], decode)


def by_streaming(folder: Path, decode: bool) -> Iterator[ReadResult]:
    """Read with MosaicML's streaming, shuffled, from a local folder in its format."""
    import streaming

    dataset = streaming.StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=1)
    for sample in dataset:
        yield image_of(sample["jpeg"], sample["json"], decode)


def by_segmint(folder: Path, decode: bool, batch_size: int = 1) -> Iterator[ReadResult]:
    """Read shuffled batches."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from segmint import open_dataset

    for batch in open_dataset(str(folder / "dataset")).batches(batch_size, seed=1):
        for sample in batch:
            masks = [(mask.area, mask.counts) for mask in sample.masks]
            yield ReadResult(sample.id, sample.jpeg or b"", masks, sample.image if decode else None)


def by_batches(folder: Path, decode: bool) -> Iterator[ReadResult]:
    """Read shuffled batches of several images. A batch is completely in memory."""
    return by_segmint(folder, decode, BATCH)


SIDES = {
    "tarfile": by_tarfile,
    "webdataset": by_webdataset,
    "mixed": by_mixed,
    "streaming": by_streaming,
    "segmint": by_segmint,
    "batches": by_batches,
}


def convert(folder: Path) -> None:
    """Convert the dataset to streaming's format."""
    import streaming

    columns = {"jpeg": "bytes", "json": "bytes"}
    with streaming.MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=MDS_BYTES) as writer:
        for jpeg, document in pairs(folder):
            writer.write({"jpeg": jpeg, "json": document})


if __name__ == "__main__":
    main()
