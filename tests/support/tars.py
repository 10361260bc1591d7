"""Small tars of photographs and sidecars for tests, and the URIs of the files in them."""

import io
import tarfile
from collections.abc import Mapping

from segmint.infra.uris import TarMember


def tar_of(files: Mapping[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an uncompressed tar of these files, in order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1.5
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def member_uris(tar: str, data: bytes) -> list[str]:
    """Return the URIs of all plain files of a tar, as Python's own reader finds them."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [TarMember(tar, each.offset_data, each.size).uri for each in archive if each.isfile()]
