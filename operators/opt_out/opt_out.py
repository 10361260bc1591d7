"""Whether the rights holder of an image forbids training with it, by the metadata in its bytes."""

from collections.abc import Iterator

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.operators.opt_out.containers import find_metadata
from segmint.operators.opt_out.manifests import c2pa_values
from segmint.operators.opt_out.rules import OptOut, Verdict, rule_for
from segmint.operators.opt_out.xmp import xmp_values


def opt_out(data: bytes) -> OptOut | None:
    """Return the first field of an image's metadata that forbids training, in XMP and then in C2PA; None: no field.

    No pixel is decoded. Whatever else the metadata says, one field that forbids is enough; metadata that is damaged
    says nothing. Call this in a child process alone, since the bytes are untrusted and the C2PA library is native code.
    Raises `C2paMissingError` if the image has a manifest and the library cannot be loaded.
    """
    for field, value in _values(data):
        rule = rule_for(field, value)
        if rule is not None and rule.verdict is Verdict.OPTED_OUT:
            return OptOut(field, rule.value)
    return None


def refuse_opted_out(data: bytes) -> None:
    """Raise `RejectedError` (`opted_out`) if `opt_out` finds a field."""
    found = opt_out(data)
    if found is not None:
        raise RejectedError(Reason.OPTED_OUT, found.detail)


def _values(data: bytes) -> Iterator[tuple[str, str]]:
    metadata = find_metadata(data)
    for packet in metadata.packets:
        yield from xmp_values(packet)
    if metadata.c2pa is not None:
        yield from c2pa_values(data, metadata.c2pa)
