"""Parsing and allow-list checks of URIs: `s3://bucket/key`, `file:///x`, plain local paths, and files in tars."""

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from segmint.infra.errors import UsageError

LOCAL = "file"
AZURE = frozenset({"az", "abfs", "abfss"})
ALLOWED_SCHEMES = frozenset({LOCAL, "s3", "gs", "gcs", *AZURE})

_CONTAINER_FIRST = frozenset({"abfs", "abfss"})  # abfs://container@account contains a container, not a user
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://")
_LONGEST = 8192  # twice Linux's maximum path length, and eight times S3's maximum key length
_BUCKET = re.compile(r"^[A-Za-z0-9._-]{3,255}$")  # all characters that any store accepts
# This matches only Azure's own accounts, so that no catalog can send credentials to another server.
_CONTAINER = re.compile(r"^(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9](@[a-z0-9]{3,24}\.(dfs|blob)\.core\.windows\.net)?$")
_USUAL_BUCKET = re.compile(r"^(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# A secret may contain slashes (as AWS secrets do) and @. A port followed by a slash isn't a secret. The lengths are
# bounded because the text comes from a catalog.
_PASSWORD = re.compile(r"(?<=://)[^/\s@:]{0,2000}:(?!\d{1,5}/)\S{0,2000}@")
_USERINFO = re.compile(rf"{_PASSWORD.pattern}|(?<=://)[^/\s]{{0,2000}}@")
_SIGNED_QUERY = re.compile(
    r"(?i)(?<![\w-])((?:[\w-]*(?:signature|credential|token|secret|password|passwd|api[_-]?key|"
    r"access[_-]?key(?:[_-]?id)?|account[_-]?key))|sig|hmac|jwt|pwd)(=|%3D)[^&\s\"']+"
)
_PRESIGNED = re.compile(r"(?i)[?&](?:X-(?:Amz|Goog)-(?:Signature|Credential)|AWSAccessKeyId|sig)=")  # sig is Azure's
_PATTERN = re.compile(r"[*?\[]")
_MEMBER = re.compile(r"(.+\.tar)#(\d{1,15})\+(\d{1,15})", re.ASCII | re.IGNORECASE)
_HIDDEN = "[redacted]"
_TOKENS = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b|\bAIza[\w-]{35}|\b(?:hf_|gh[opsu]_|github_pat_)\w{30,}|"
    r"(?i:(?<=authorization).{1,5}(?:basic|bearer|token)\s+[^\s\"']+)"
)

TAR_BLOCK = 512
"""Number of bytes of a tar's header. Headers and files begin at multiples of it."""

ALONE = r"^(/|[A-Za-z][A-Za-z0-9+.\-]*://)"
"""Pattern, for Arrow and `re`, of a URI that doesn't depend on its catalog's folder."""

SUSPICIOUS = "(?s)://.*@|=|AKIA|ASIA|AIza|hf_|gh[opsu]_|github_pat_|(?i:%3D|authorization)"
"""Pattern, for Arrow and `re`, of all texts that `redact` changes, and of some others."""


class UriNotAllowedError(UsageError):
    """Raised when a catalog or configuration must not contain a URI, because of its scheme, user part, or target."""


class TarMember(NamedTuple):
    """Plain file in an uncompressed tar. Its header is in the `TAR_BLOCK` bytes before the file."""

    tar: str  # URI of the tar
    offset: int  # of the file's first byte in the tar
    size: int  # bytes

    @property
    def uri(self) -> str:
        """The only valid URI of the file, such as `photos/0001.tar#1262592+644701`."""
        return f"{self.tar}#{self.offset}+{self.size}"


def split_member(uri: str) -> TarMember | None:
    """Return the file in a tar that a URI names, or None if it names a whole object.

    Only URIs such as `a.tar#1024+7` name files in tars. An object whose name doesn't contain `.tar#` may be called
    anything, such as `a#1+2`.
    """
    match = _MEMBER.fullmatch(uri)
    return match and TarMember(match[1], int(match[2]), int(match[3]))


def redact(text: str) -> str:
    """Redact text that looks like a credential: user parts of URLs, signed queries, and tokens in known forms."""
    text = _USERINFO.sub(f"{_HIDDEN}@", text)
    text = _SIGNED_QUERY.sub(rf"\1\2{_HIDDEN}", text)
    return _TOKENS.sub(_HIDDEN, text)


def scheme(uri: str) -> str:
    """Return a URI's scheme in lowercase, or `file` for a plain path.

    Raises `UriNotAllowedError` if the URI isn't allowed.
    """
    if not uri:
        raise UriNotAllowedError("an empty URI: expected s3://bucket/key, file:///path or a local path")
    if len(uri) > _LONGEST:
        raise UriNotAllowedError(f"a URI of {len(uri):,} characters; expected at most {_LONGEST:,}")
    if _CONTROL.search(uri):
        raise UriNotAllowedError(f"the URI {redact(uri)!r} holds a control character")
    match = _SCHEME.match(uri)
    if match is None:
        if "://" in uri:
            raise UriNotAllowedError(f"the URI {redact(uri)!r} chains protocols or has no valid scheme")
        return LOCAL
    name = match.group(1).lower()
    if name not in ALLOWED_SCHEMES:
        raise UriNotAllowedError(
            f"the scheme {name}:// of {redact(uri)!r} is not allowed; "
            f"expected one of {', '.join(sorted(ALLOWED_SCHEMES))}, or a local path"
        )
    if _holds_credential(uri, name):
        raise UriNotAllowedError(
            f"the URI {redact(uri)!r} carries a user part or a signature: credentials come by the standard chain "
            "(environment, profile, instance or pod role), never inside a URI"
        )
    return name


def _holds_credential(uri: str, name: str) -> bool:
    user_part = _PASSWORD if name in _CONTAINER_FIRST else _USERINFO
    return bool(user_part.search(uri) or _PRESIGNED.search(uri)) or f"{_HIDDEN}@" in uri


def fit_to_keep(uri: str) -> str:
    """Return the form of a catalog's URI that a dataset can store: unchanged if it's allowed, otherwise redacted."""
    try:
        scheme(uri)
    except UriNotAllowedError:
        return redact(uri)
    return uri


def local_path(uri: str) -> Path:
    """Return the path of a local URI. A plain path stays unchanged, and `file:///x` is percent-decoded (RFC 8089)."""
    if scheme(uri) != LOCAL:
        raise UriNotAllowedError(f"{redact(uri)!r} is no local path")
    match = _SCHEME.match(uri)
    if match is None:
        return Path(uri)
    rest = uri[match.end() :].removeprefix("localhost")
    if not rest.startswith("/"):
        raise UriNotAllowedError(f"{redact(uri)!r} names a host: expected file:///absolute/path")
    _refuse_encoded_control(uri)
    return Path(unquote(rest))


def only_path(path: str | Path) -> str:
    """Return the pattern that makes DuckDB read this local file, and no other one.

    DuckDB treats each path as a pattern. It can't express a backslash in a pattern, but it opens a path as written if a
    backslash precedes each special character. Raises `UsageError` for any other path with a backslash.
    """
    text = str(path)
    if "\\" not in text:
        return _PATTERN.sub(r"[\g<0>]", text)
    if _PATTERN.search(re.sub(r"\\.", "", text)):
        raise UsageError(f"{text} contains a backslash and one of * ? [, which DuckDB can't open: rename its folder")
    return text


def split_bucket(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/key` into the bucket and the key. The key isn't decoded, and it may be empty."""
    bucket, _, key = uri[_after_scheme(uri) :].partition("/")
    protocol = scheme(uri)
    names = _BUCKET if protocol == "s3" else _CONTAINER if protocol in AZURE else None
    if not bucket or (names is not None and not names.match(bucket)):
        raise UriNotAllowedError(f"{redact(uri)!r} names no valid bucket: expected {protocol}://bucket/key")
    return bucket, key


def has_unusual_bucket(uri: str) -> bool:
    """Return whether the bucket name in an S3 URI breaks Amazon S3's current rules. Some of the oldest buckets do."""
    return uri[:5].lower() == "s3://" and not _USUAL_BUCKET.match(uri[5:].partition("/")[0])


def store_name(uri: str) -> str:
    """Return a readable name for the store of a URI: `s3://bucket`, or `local files`."""
    protocol = scheme(uri)
    return "local files" if protocol == LOCAL else f"{protocol}://{split_bucket(uri)[0]}"


def absolute(uri: str) -> str:
    """Make a local path absolute, so that it doesn't depend on the working directory. Other URIs stay unchanged."""
    return str(local_path(uri).absolute()) if scheme(uri) == LOCAL else uri


def is_catalog_folder(uri: str) -> bool:
    """Return whether a catalog's URI names a folder of files instead of a file, because it ends with a slash."""
    return uri.endswith("/")


def absolute_catalog(uri: str) -> str:
    """Make the local path of a catalog absolute. A folder's name ends with exactly one slash."""
    return f"{absolute(uri).rstrip('/')}/" if is_catalog_folder(uri) else absolute(uri)


def is_below(uri: str, folder: str) -> bool:
    """Return whether a URI is `folder` or is below it, after resolving local links and `..`.

    The case of schemes doesn't matter, and neither does which of a store's schemes is used, such as gs or gcs. An Azure
    container without an account counts as the container of that name in any account. All URIs of a scheme are below
    that scheme, such as `s3://`.
    """
    if scheme(uri) == LOCAL and scheme(folder) == LOCAL:
        return Path(os.path.realpath(local_path(uri))).is_relative_to(os.path.realpath(local_path(folder)))
    store, account, below = _place(uri)
    other_store, other_account, above = _place(folder)
    if store != other_store or (account and other_account and account != other_account):
        return False
    return not above or f"{below.rstrip('/')}/".startswith(f"{above.rstrip('/')}/")


def _place(uri: str) -> tuple[str, str, str]:
    """Return the main scheme of a URI's store, the Azure account in the URI, and the rest of the URI."""
    store = scheme(uri)
    rest = uri[_after_scheme(uri) :]
    if store not in AZURE:
        return "gs" if store == "gcs" else store, "", rest
    bucket, slash, key = rest.partition("/")
    container, _, host = bucket.partition("@")
    return "az", host.partition(".")[0], f"{container}{slash}{key}"


def join(base: str, *parts: str) -> str:
    """Append `parts` to `base`, separated by single slashes. Raises `UriNotAllowedError` if a part contains `..`."""
    pieces = [piece for part in parts for piece in part.split("/") if piece not in {"", "."}]
    if ".." in pieces:
        raise UriNotAllowedError(f"'..' is not allowed below {redact(base)!r}: {'/'.join(parts)!r}")
    if not pieces:
        return base
    if not base:
        return "/".join(pieces)
    separator = "" if base.endswith("/") else "/"
    return base + separator + "/".join(pieces)


def child(folder: str, name: str) -> str:
    """Return the URI of the object that a listing of `folder` calls `name`.

    In a store, the name is appended unchanged, because `a//b` and `./b` are other objects than `a/b` and `b`. A local
    path is normalized. Raises `UriNotAllowedError` if the name contains `..`.
    """
    joined = join(folder, name)
    if not name or not _after_scheme(folder) or folder.lower().startswith("file://"):
        return joined
    return f"{folder.rstrip('/')}/{name}"


def parent(uri: str) -> str:
    """Return the parent folder or prefix without a trailing slash. The parent of a root or bucket is itself."""
    start = _after_scheme(uri)
    if uri[start:] == "/":
        return uri
    head, slash, tail = uri[start:].rstrip("/").rpartition("/")
    if start:
        return uri[:start] + (head or slash or tail)
    return head or (slash or ".")


def base_name(uri: str) -> str:
    """Return the last component of a URI."""
    return uri.rstrip("/").rpartition("/")[2]


def relative_to(catalog_uri: str, uri: str) -> str:
    """Return the absolute URI of the entry `uri` in the catalog at `catalog_uri`.

    - If the URI has a scheme, the scheme must be on the allow-list (`ALLOWED_SCHEMES`), and the URI must not have a
      user part.
    - In a store, no part of the URI may be `..`, even percent-encoded. Although a store treats it as a name, a proxy
      could resolve it. If the store's client would ask for another object, the URI isn't allowed either.
    - A relative URI is resolved against the folder that contains the catalog, or against the catalog itself if it's a
      folder of files. It must not contain `..`, so a catalog can't reach files outside its folder. In a store, it must
      not contain `//` or end with `/` either, because these keys are other objects there than in a local folder. Only
      an absolute URI can name them.
    - A URI of a file in a tar must be written as in `TarMember.uri`, so that no file has two URIs.
    - An absolute local path or `file://` URI is allowed only if the catalog is a local file, too. A catalog from a
      bucket must not read files of the machine that builds from it.

    Control characters aren't allowed, whether raw or percent-encoded. Local results are plain absolute paths. If the
    URI isn't allowed, raises `UriNotAllowedError` with the reason.
    """
    found = _relative_to(catalog_uri, uri)
    _refuse_odd_member(found, uri)
    return found


def _relative_to(catalog_uri: str, uri: str) -> str:
    """Return the absolute URI of a catalog's entry, without checking whether a file can begin at its place in a tar."""
    catalog_is_local = scheme(catalog_uri) == LOCAL
    if scheme(uri) != LOCAL:
        split_bucket(uri)
        _refuse_climbing(uri)
        _refuse_changed(uri)
        return f"{scheme(uri)}://{uri[_after_scheme(uri) :]}"
    _refuse_encoded_control(uri)
    if _SCHEME.match(uri) or uri.startswith("/"):
        if not catalog_is_local:
            raise UriNotAllowedError(
                f"{redact(uri)!r} is a local path, but its catalog is not a local file: give a URI of a store, or a "
                "path relative to the catalog"
            )
        return os.path.normpath(local_path(uri))
    if ".." in uri.split("/"):
        raise UriNotAllowedError(f"{redact(uri)!r} climbs out of its catalog's folder by '..'")
    if catalog_is_local:
        return os.path.normpath(catalog_folder(catalog_uri) + uri)
    _refuse_climbing(uri)
    names = [name for name in uri.split("/") if name != "."]
    if "" in names or not names:
        raise UriNotAllowedError(f"{redact(uri)!r} contains an empty name: give the absolute URI of the object")
    return catalog_folder(catalog_uri) + "/".join(names)


def catalog_folder(catalog_uri: str) -> str:
    """Return the absolute folder of a catalog, or its unchanged prefix in a store, with a slash at its end."""
    if scheme(catalog_uri) != LOCAL:
        return absolute_catalog(catalog_uri) if is_catalog_folder(catalog_uri) else f"{parent(catalog_uri)}/"
    folder = os.path.abspath(local_path(catalog_uri))  # noqa: PTH100
    if not is_catalog_folder(catalog_uri):
        folder = os.path.dirname(folder)  # noqa: PTH120
    return os.path.join(folder, "")  # noqa: PTH118


def plain_form(uri: str) -> str:
    """Normalize a catalog's URI for comparisons: `./a.jpg` becomes `a.jpg`, and `file:///x` becomes `/x`.

    The scheme becomes lowercase. A URI that isn't allowed stays unchanged.
    """
    try:
        if scheme(uri) != LOCAL:
            return f"{scheme(uri)}://{uri[_after_scheme(uri) :]}"
        path = os.path.normpath(local_path(uri))
        return f"/{path.lstrip('/')}" if path.startswith("//") else path
    except UriNotAllowedError:
        return uri


def plain_forms(uri: str, catalog_uri: str | None) -> set[str]:
    """Return all plain forms of `uri` that rows may contain.

    These are the form of the URI itself and, if `catalog_uri` is given, its forms as an entry of that catalog.
    """
    found = {plain_form(uri)}
    if catalog_uri is not None and uri:
        try:
            there = plain_form(relative_to(catalog_uri, plain_form(uri)))
        except UriNotAllowedError:
            return found
        found.add(there)
        prefix = catalog_folder(catalog_uri)
        if there.startswith(prefix):
            found.add(there.removeprefix(prefix))
    return found


def _refuse_climbing(uri: str) -> None:
    """Raise `UriNotAllowedError` if a store's URI contains `..` or a control character, even percent-encoded."""
    _refuse_encoded_control(uri)
    if ".." in uri.split("/") or ".." in unquote(uri).split("/"):
        raise UriNotAllowedError(f"{redact(uri)!r} climbs by '..', plain or percent-encoded")


def _refuse_changed(uri: str) -> None:
    """Raise `UriNotAllowedError` if the client of the URI's store would ask for another object."""
    protocol = scheme(uri)
    loses_dot = protocol in AZURE and "." in uri.split("/")
    if loses_dot or (protocol not in {"s3", *AZURE} and uri.endswith("/")):
        raise UriNotAllowedError(f"{redact(uri)!r} contains '.' or ends with '/', which its store's client removes")


def _refuse_odd_member(uri: str, written: str) -> None:
    """Raise `UriNotAllowedError` if a URI names a place in a tar where no file can begin, or writes numbers oddly.

    `written` is the URI as its catalog writes it. It must name the place, too, so that a takedown can list it: it must
    not hide the place by a percent-encoded # or a `/.` at its end. The message quotes it, because the dataset publishes
    the message.
    """
    member = split_member(uri)
    if member is None:
        return
    if split_member(written) is None or member.uri != uri or member.offset % TAR_BLOCK or not member.offset:
        raise UriNotAllowedError(
            f"{redact(written)!r} names no file in a tar: expected .tar#OFFSET+SIZE in bytes, without leading zeros, "
            f"and an offset that is a multiple of {TAR_BLOCK} and not 0"
        )


def _refuse_encoded_control(uri: str) -> None:
    if _CONTROL.search(unquote(uri)):
        raise UriNotAllowedError(f"the URI {redact(uri)!r} holds a percent-encoded control character")


def _after_scheme(uri: str) -> int:
    match = _SCHEME.match(uri)
    return match.end() if match else 0
