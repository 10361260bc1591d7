"""Descriptions of a dataset for others: `croissant.json` (MLCommons Croissant 1.1) and `disclosure.md`.

Page `disclosure.md`: facts for the EU's public summary of training content and for California's AB 2013.

The sections are those of the template that the European Commission published on July 24, 2025 (annex to C(2025) 5235),
and the paragraphs of Civil Code section 3111(a).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.manifest import DatasetManifest, ModelTerms
from segmint.catalogs.findings import Reason
from segmint.catalogs.layout import DATA_KINDS
from segmint.catalogs.licenses import license_url
from segmint.catalogs.lineage import TrainingRound
from segmint.infra.wording import counted
from segmint.operators.rows import AUTOMATIC, shard_schemas
from segmint.pipeline.quality.audit.result import AuditReport, Licenses
from segmint.pipeline.quality.report.facts import SAM, BuildFacts, Facts
from segmint.pipeline.quality.report.page import describe_licenses, render_markdown
from segmint.pipeline.quality.statistics.values import Statistics

_FORMATS = {"tar": "application/x-tar", "parquet": "application/x-parquet"}

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "cc": "http://creativecommons.org/ns#",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "odrl": "http://www.w3.org/ns/odrl/2/",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
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
"""JSON-LD context of Croissant 1.1 as mlcroissant writes it, and the vocabularies of lineage and conditions."""

_DUTIES = {"BY": "odrl:attribute", "SA": "cc:ShareAlike"}
_PROHIBITIONS = {"NC": "cc:CommercialUse", "ND": "cc:DerivativeWorks"}
"""Actions that a Creative Commons license demands or forbids, by the part of its identifier that says so."""

_KINDS = {"images": "One row per image.", "masks": "One row per mask.", "rejects": "One row per rejected image."}


def croissant_json(facts: Facts, root: str, licenses: Licenses | None = None) -> bytes:
    """Describe a segmint dataset. `root` is the path or URI that leads from the description's folder to the dataset.

    `licenses` are those of an audit, or None if they weren't audited.

    Raises `ValueError` for data that segmint didn't write, because file hashes are only recorded in commits.
    """
    manifest, version, build = facts.manifest, facts.version, facts.build
    if manifest is None or version is None or build is None:
        raise ValueError("hashes come from commits, and this dataset has none")
    schemas = shard_schemas(manifest.columns, manifest.schema_version)
    terms = ModelTerms()
    adding = "".join(f" The {segmenter} added masks." for segmenter in build.adding)
    models = []
    if facts.masks_of_build:
        terms = build.model
        models.append(_model(manifest.weights.name, manifest.weights.sha256, terms))
    for name, added in manifest.adding.items():
        models.append(_model(name, None, added))
    for sha256, applied in manifest.applied.items():
        models.append(_model(applied.name, sha256, applied.model))
    made_with = f"segmint {manifest.code_version}"
    if facts.masks_of_build:
        weights = manifest.weights.name
        if manifest.round:
            weights += f", round {manifest.round}"
        made_with += f" and {build.maker} ({weights})"
    keywords = ["image segmentation", "mask generation", "SA-1B"]
    if build.segmenter is None and facts.masks_of_build:
        keywords.insert(2, SAM)
    number = {}
    if version.number is not None:
        number["version"] = f"{version.number}.0.0"
    value = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": facts.name,
        "description": (
            f"{facts.images:,} photographs with {facts.masks:,} SA-1B-style segmentation masks, "
            f"made with {made_with}.{adding} {describe_licenses(licenses)}"
        ),
        "license": [license_url(license) or license for license, _ in facts.licenses if license] or ["unknown"],
        "usageInfo": [*_conditions(facts), *_model_conditions(manifest, terms)],
        "prov:wasDerivedFrom": [
            _entity("prov:Entity", f"Catalog of {part.rows:,} rows", part.source_sha256) for part in manifest.catalog
        ],
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:label": "segmint build",
            "prov:wasAssociatedWith": _entity("prov:SoftwareAgent", f"segmint {manifest.code_version}"),
            "prov:used": list(_weights(manifest)),
        },
        "isBasedOn": models[0] if len(models) == 1 else models,
        "identifier": f"sha256:{version.digest}",
        **number,
        "dateCreated": manifest.policy_date.isoformat(),
        "keywords": keywords,
        "distribution": [*_files(facts, root), *_file_sets(facts)],
        "recordSet": [
            record_set("images", schemas["images"]),
            {**record_set("masks", schemas["masks"]), "prov:wasAttributedTo": list(_mask_makers(facts, build))},
            *_photographs(facts),
        ],
    }
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _conditions(facts: Facts) -> Iterator[dict[str, Any]]:
    """Describe the conditions of each Creative Commons license in ODRL, as Croissant 1.1 recommends."""
    for license, images in facts.licenses:
        parts = (license or "").split("-")
        if parts[0] != "CC":
            continue
        offer: dict[str, Any] = {
            "@type": ["CreativeWork", "odrl:Offer"],
            "name": license,
            "description": f"Conditions of the license of {counted(images, 'image')}.",
            "url": license_url(license),
        }
        duties = [{"odrl:action": {"@id": action}} for part, action in _DUTIES.items() if part in parts]
        prohibitions = [{"odrl:action": {"@id": action}} for part, action in _PROHIBITIONS.items() if part in parts]
        if duties:
            offer["odrl:permission"] = {"odrl:action": {"@id": "odrl:use"}, "odrl:duty": duties}
        if prohibitions:
            offer["odrl:prohibition"] = prohibitions
        if duties or prohibitions:
            yield offer


def _model_conditions(manifest: DatasetManifest, terms: ModelTerms) -> Iterator[dict[str, Any]]:
    applied = [segmenter.model for segmenter in manifest.applied.values()]
    for model in (terms, *manifest.adding.values(), *applied):
        if model.terms is not None:
            yield {"@type": "CreativeWork", "name": "Terms of a model that made masks", "text": model.terms}


def _entity(kind: str, label: str, sha256: str | None = None) -> dict[str, Any]:
    """Describe something that PROV-O knows. Its hash is also its `@id`, by which others refer to it."""
    entity = {"@type": kind, "prov:label": label}
    if sha256 is not None:
        entity |= {"@id": f"urn:sha256:{sha256}", "identifier": f"sha256:{sha256}"}
    return entity


def _weights(manifest: DatasetManifest) -> Iterator[dict[str, Any]]:
    """Describe the weights that made the masks, and those from which they were trained, with the training datasets."""
    before: list[dict[str, Any]] = []
    for link in manifest.lineage or (TrainingRound(weights=manifest.weights.sha256, name=manifest.weights.name),):
        weights = _entity("prov:Entity", link.name, link.weights)
        datasets = [_entity("prov:Entity", each.name, each.digest) for each in link.datasets]
        if datasets or before:
            weights["prov:wasDerivedFrom"] = [*datasets, *before]
        yield weights
        before = [{"@id": weights["@id"]}]


def _mask_makers(facts: Facts, build: BuildFacts) -> Iterator[dict[str, Any]]:
    if facts.masks_of_build:
        yield _entity("prov:SoftwareAgent", build.segmenter or build.maker)
    for segmenter in build.adding:
        yield _entity("prov:SoftwareAgent", segmenter)
    if facts.people:
        yield _entity("prov:Agent", "Annotators")


def _model(name: str, sha256: str | None, terms: ModelTerms) -> dict[str, Any]:
    """Describe a model. `sha256` is its identifier if the terms don't contain the hash of its files."""
    model = {"@type": "sc:SoftwareApplication", "name": name}
    digest = terms.weights_sha256 or sha256
    if digest is not None:
        model["identifier"] = f"sha256:{digest}"
    if terms.license is not None:
        model["license"] = license_url(terms.license) or terms.license
    if terms.terms is not None:
        model["usageInfo"] = terms.terms
    return model


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


def record_set(kind: str, schema: pa.Schema) -> dict[str, Any]:
    """Describe the columns of a kind of table. `kind` is a key of `SCHEMAS`."""
    key = "id"
    fields = [_field(f"{kind}/{column.name}", column.name, column.type, f"{kind}-files") for column in schema]
    if kind == "masks":
        key = "annotation_id"
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
    depth = 0
    while pa.types.is_list(kind):
        depth += 1
        field.update(isArray=True, arrayShape=",".join(["-1"] * depth))
        kind = kind.value_type
        if pa.types.is_struct(kind):
            path = f"{path or '$'}[*]"
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
    if pa.types.is_integer(kind):
        return "sc:Integer"
    known: Mapping[str, str] = {"bool": "sc:Boolean", "double": "sc:Float", "float": "sc:Float", "string": "sc:Text"}
    return known[str(kind)]


_SHOWN = 50  # maximum number of labels, countries, and providers


def disclosure_markdown(audit: AuditReport, statistics: Statistics, facts: Facts) -> str:
    """Write the page as Markdown. All text from the data is escaped.

    Raises `ValueError` for data that segmint didn't write, because it doesn't record these facts.
    """
    if facts.manifest is None or facts.version is None:
        raise ValueError("the facts come from commits, and this dataset has none")
    reasons = statistics.rejected_by_reason or {}
    public_domain = 0
    for license, images in facts.licenses:
        if "/publicdomain/" in (license_url(license) or ""):
            public_domain += images
    return render_markdown(
        "disclosure.md.j2",
        audit,
        statistics,
        facts,
        shown=_SHOWN,
        licenses=audit.licenses,
        public_domain=public_domain,
        reasons=sorted(reasons.items(), key=lambda item: (-item[1], item[0])),
        opted_out=reasons.get(Reason.OPTED_OUT, 0),
        refused=reasons.get(Reason.REFUSED_BY_LIST, 0),
        automatic=(statistics.sources or {}).get(AUTOMATIC, 0),
        size_range=_size_range(facts.images),
    )


def _size_range(images: int) -> str:
    """Return the range that the template offers for a number of images."""
    if images < 1_000_000:
        return "less than 1 million images"
    return "1 million to 1 billion images" if images <= 1_000_000_000 else "more than 1 billion images"
