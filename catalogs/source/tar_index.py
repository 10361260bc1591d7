"""Index of an uncompressed tar: where its photographs are, and what its sidecar files say."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from tarfile import TarInfo
from typing import Any, BinaryIO

from segmint.catalogs.endings import IMAGE_ENDINGS
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.infra.uris import TAR_BLOCK, TarMember

SIDECAR_ENDINGS = (".json", ".license")

_SIDECAR_BYTES = 8 << 20  # WebDataset's JSON may contain more than a catalog's columns, such as SA-1B's masks
_PIECE = 4 << 20

Columns = dict[str, Any]
"""Values for columns of a catalog."""


@dataclass
class TarIndex:
    """Images and sidecar files of a tar by name, in order. Names have no slash at the start, no `//`, and no `./`.

    An image has a `uri` and, if the index hashes the images, a `sha256`. The extensions of sidecars are in lowercase.
    `skipped` has the reason for each name that isn't listed.
    """

    images: dict[str, Columns] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    _sidecars: dict[str, Columns | UsageError] = field(default_factory=dict)

    def sidecar(self, name: str) -> Columns:
        """Return the columns in a sidecar file, if the tar has it. Raises `UsageError` if the file is invalid."""
        found = self._sidecars.get(name, {})
        if isinstance(found, UsageError):
            raise found
        return found

    def strays(self) -> list[str]:
        """Return the names of sidecars whose names contain an image's name, but without such an image in the tar."""
        owners = ((name, name.rpartition(".")[0]) for name in self._sidecars)
        return [name for name, owner in owners if owner.lower().endswith(IMAGE_ENDINGS) and owner not in self.images]


def sample_json(name: str) -> str:
    """Return the name of the JSON file of an image's WebDataset sample: all files with the same path up to a dot.

    The dot is the first one in the last component of the path.
    """
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}.json"


def index_tar(tar: Location, parse: Callable[[str, bytes], Columns], *, hashed: bool) -> TarIndex:
    """Index a tar in one pass. `parse` returns the columns in a sidecar, given its place for messages and its bytes.

    If the tar has several files of one name, only the last one counts, as if the tar were unpacked. But a sidecar can't
    take back the opt-out of an earlier one. Raises `BadTarError` unless the tar is uncompressed and whole. A damaged
    tar isn't listed in part, because its missing part may contain sidecars with other licenses.
    """
    index = TarIndex()
    with tar.open() as stream:
        reader = TarReader(stream)
        for member in reader:
            name = _plain_name(member.name)
            owner, _, ending = name.rpartition(".")
            is_image = name.lower().endswith(IMAGE_ENDINGS)
            if member.isdir() or not (is_image or name.lower().endswith(SIDECAR_ENDINGS)):
                continue
            if index.images.pop(name, None) is not None:
                index.skipped[name] = "a later file in the tar has the same name, so only that one is listed"
            if not is_image:
                sidecar = f"{owner}.{ending.lower()}"
                before = index._sidecars.get(sidecar)
                found = _sidecar(f"{tar}, {name}", reader, member, parse)
                if isinstance(before, dict) and isinstance(found, dict) and before.get("opt_out"):
                    found = {**found, "opt_out": True}  # a later file can't take it back
                index._sidecars[sidecar] = found
            elif _is_in_one_piece(member):
                uri = TarMember(str(tar), member.offset_data, member.size).uri
                index.images[name] = {"uri": uri, "sha256": _sha256(stream, member) if hashed else None}
            else:
                index.skipped[name] = "it's a link or a sparse file, so the tar doesn't contain its bytes in one piece"
        _check_end(stream, reader.end)
    return index


def _plain_name(name: str) -> str:
    """Return the name of a member as it would be unpacked, so that a sidecar and its image have the same folder."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _is_in_one_piece(member: TarInfo) -> bool:
    """Return whether the tar contains the file as it is, and the header right before the file says its size."""
    resized = any(key == "size" or key.startswith("GNU.sparse.") for key in member.pax_headers)
    return is_plain_file(member) and not resized


def _sidecar(
    where: str, reader: TarReader, member: TarInfo, parse: Callable[[str, bytes], Columns]
) -> Columns | UsageError:
    """Return the columns in a sidecar, or the error that occurs if it belongs to an image.

    A tar may contain other JSON files.
    """
    if not is_plain_file(member) or member.size > _SIDECAR_BYTES:
        return UsageError(f"{where}: a link, a sparse file, or over {_SIDECAR_BYTES:,} bytes; expected a plain file")
    data = reader.read(member)
    try:
        return parse(where, data)
    except UsageError as error:
        return error


def _sha256(stream: BinaryIO, member: TarInfo) -> str:
    stream.seek(member.offset_data)
    digest, left = hashlib.sha256(), member.size
    while left and (piece := stream.read(min(left, _PIECE))):
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()


def _check_end(stream: BinaryIO, end: int) -> None:
    """Raise `BadTarError` unless only zeros follow a tar's last file, at least one block of them."""
    stream.seek(end)
    if stream.read(TAR_BLOCK) != bytes(TAR_BLOCK):
        raise BadTarError(f"at byte {end:,}, neither a file nor the end marker follows, so it's cut off or damaged")
    while piece := stream.read(_PIECE):
        if piece.strip(b"\0"):
            raise BadTarError(f"bytes follow its end marker at byte {end:,}, so it's several tars in one file")
