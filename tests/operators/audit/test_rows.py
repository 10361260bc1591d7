"""What the audit finds in the tables of a shard."""

import pyarrow as pa

from segmint.catalogs.findings import Code, FindingLocation
from segmint.operators.audit.rows import ShardTables, audit_catalog_rows
from segmint.operators.rows import IMAGES, MASKS, REJECTS


def test_an_image_that_the_catalog_refuses_is_found() -> None:
    row = {**dict.fromkeys(IMAGES.names), "ordinal": 4, "id": 5, "image_id": "x", "uri": "x.jpg"}
    images = pa.Table.from_pylist([row], schema=IMAGES)
    places = {kind: FindingLocation(kind) for kind in ("images", "masks", "rejects")}
    tables = ShardTables(images, MASKS.empty_table(), REJECTS.empty_table(), places)
    catalog = {**row, "sha256": None, "duplicate_of": None}
    assert not list(audit_catalog_rows(tables, {4: catalog}))
    (finding,) = audit_catalog_rows(tables, {4: {**catalog, "refused_reason": "unfit"}})
    assert (finding.code, finding.expected, finding.found) == (
        Code.OTHER_CATALOG_ROW,
        "refused as unfit, as in the catalog",
        "accepted",
    )
