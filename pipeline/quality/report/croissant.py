"""Dataset description `croissant.json` (MLCommons Croissant 1.0) with file hashes and the tables' columns."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from segmint.catalogs.attributions import license_url
from segmint.catalogs.dataset.manifest import ModelTerms
from segmint.catalogs.layout import DATA_KINDS
from segmint.operators.schemas import shard_schemas
from segmint.pipeline.quality.report.facts import SAM, Facts

_FORMATS = {"tar": "application/x-tar", "parquet": "application/x-parquet"}

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""JSON-LD context from the Croissant 1.0 specification."""

_KINDS = {"images": "One row per image.", "masks": "One row per mask.", "rejects": "One row per rejected image."}


def croissant_json(facts: Facts, root: str) -> bytes:
    """Describe a segmint dataset. `root` is the path or URI that leads from the description's folder to the dataset.

    Raises `ValueError` for data that segmint didn't write, because file hashes are only recorded in commits.
    """
    manifest, version = facts.manifest, facts.version
    if manifest is None or version is None:
        raise ValueError("hashes come from commits, and this dataset has none")
    schemas = shard_schemas(manifest.columns, manifest.schema_version)
    maker = SAM if facts.build is None else facts.build.maker
    terms = facts.build.model if facts.build is not None else ModelTerms()
    models = [_model(manifest.weights.name, terms.weights_sha256 or manifest.weights.sha256, terms)]
    for sha256, segmenter in manifest.applied.items():
        models.append(_model(segmenter.name, segmenter.model.weights_sha256 or sha256, segmenter.model))
    trained = f", round {manifest.round}" if manifest.round else ""
    adding = () if facts.build is None else facts.build.adding
    value = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": facts.name,
        "description": (
            f"{facts.images:,} licensed photographs with {facts.masks:,} SA-1B-style segmentation masks, "
            f"made with segmint {manifest.code_version} and {maker} ({manifest.weights.name}{trained})."
            + "".join(f" The {segmenter} added masks." for segmenter in adding)
        ),
        "license": [license_url(license) or license for license, _ in facts.licenses if license] or ["unknown"],
        "isBasedOn": models if len(models) > 1 else models[0],
        "identifier": f"sha256:{version.digest}",
        **({} if version.number is None else {"version": f"{version.number}.0.0"}),
        "dateCreated": manifest.policy_date.isoformat(),
        "keywords": ["image segmentation", "mask generation", *([maker] if maker == SAM else []), "SA-1B"],
        "distribution": [*_files(facts, root), *_file_sets(facts)],
        "recordSet": [*(_records(kind, schemas[kind]) for kind in ("images", "masks")), *_photographs(facts)],
    }
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _model(name: str, sha256: str, terms: ModelTerms) -> dict[str, Any]:
    stated = {"license": license_url(terms.license) or terms.license, "usageInfo": terms.terms}
    return {
        "@type": "sc:SoftwareApplication",
        "name": name,
        "identifier": f"sha256:{sha256}",
        **{key: text for key, text in stated.items() if text is not None},
    }


def _files(facts: Facts, root: str) -> Iterator[dict[str, Any]]:
    for commit in facts.commits:
        for entry in sorted(commit.files, key=lambda file: file.path):
            ending = entry.path.rpartition(".")[2]
            yield {
                "@type": "cr:FileObject",
                "@id": entry.path,
                "name": entry.path,
                "contentUrl": f"{root}/{entry.path}",
                "contentSize": f"{entry.size} B",
                "encodingFormat": _FORMATS[ending],
                "sha256": entry.sha256,
            }


def _file_sets(facts: Facts) -> Iterator[dict[str, Any]]:
    sets = [
        (kind, f"{description} One file per shard.", kind, _FORMATS[DATA_KINDS[kind]], f"{kind}/*.parquet")
        for kind, description in _KINDS.items()
    ]
    named = "named by the images' ids: sa_<id>"
    sets.append(("annotations", f"The tars' annotations, {named}.json.", "shards", "application/json", "*.json"))
    if facts.with_images:
        sets.append(("photographs", f"The tars' photographs, {named}.jpg.", "shards", "image/jpeg", "*.jpg"))
    for name, description, folder, encoding, pattern in sets:
        yield {
            "@type": "cr:FileSet",
            "@id": f"{name}-files",
            "name": f"{name}-files",
            "description": description,
            "containedIn": [{"@id": commit.file(folder).path} for commit in facts.commits],
            "encodingFormat": encoding,
            "includes": pattern,
        }


def _records(kind: str, schema: pa.Schema) -> dict[str, Any]:
    key = "id" if kind == "images" else "annotation_id"
    fields = [_field(f"{kind}/{column.name}", column.name, column.type, f"{kind}-files") for column in schema]
    if kind == "masks":
        owner = next(field for field in fields if field["@id"] == "masks/id")
        owner["references"] = {"field": {"@id": "images/id"}}
    return {
        "@type": "cr:RecordSet",
        "@id": kind,
        "name": kind,
        "description": _KINDS[kind],
        "key": {"@id": f"{kind}/{key}"},
        "field": fields,
    }


def _photographs(facts: Facts) -> Iterator[dict[str, Any]]:
    """Yield the record set of the JPEGs in the tars. Their names contain the ids of the images."""
    if not facts.with_images:
        return
    fields = (
        ("file", "The name of the file: sa_<id>.jpg.", "sc:Text", "filename"),
        ("content", "The pixels.", "sc:ImageObject", "content"),
    )
    yield {
        "@type": "cr:RecordSet",
        "@id": "photographs",
        "name": "photographs",
        "description": "The released pixels of each image.",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"photographs/{name}",
                "name": f"photographs/{name}",
                "description": description,
                "dataType": kind,
                "source": {"fileSet": {"@id": "photographs-files"}, "extract": {"fileProperty": of_file}},
            }
            for name, description, kind, of_file in fields
        ],
    }


def _field(identifier: str, column: str, kind: pa.DataType, file_set: str, path: str = "") -> dict[str, Any]:
    """Describe a column, or the value at the JSONPath `path` inside it, as a field."""
    field: dict[str, Any] = {"@type": "cr:Field", "@id": identifier, "name": identifier}
    while pa.types.is_list(kind):
        field["repeated"] = True
        kind = kind.value_type
        path = f"{path or '$'}[*]" if pa.types.is_struct(kind) else path
    if pa.types.is_struct(kind):
        field["subField"] = [
            _field(f"{identifier}/{inner.name}", column, inner.type, file_set, f"{path or '$'}.{inner.name}")
            for inner in kind
        ]
        return field
    field["dataType"] = _data_type(kind)
    source: dict[str, Any] = {"fileSet": {"@id": file_set}, "extract": {"column": column}}
    if path:
        source["transform"] = {"jsonPath": path}
    return {**field, "source": source}


def _data_type(kind: pa.DataType) -> str:
    known: Mapping[str, str] = {"bool": "sc:Boolean", "double": "sc:Float", "float": "sc:Float", "string": "sc:Text"}
    return "sc:Integer" if pa.types.is_integer(kind) else known[str(kind)]
