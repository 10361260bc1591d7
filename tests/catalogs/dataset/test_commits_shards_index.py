"""WebDataset's index of the committed tars."""

import json
from pathlib import Path

from segmint.catalogs.dataset.commits import write_shards_index
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from tests.support.committed import write_generation
from tests.support.locations import location_of


def test_the_index_names_committed_tars_with_images(dataset: str) -> None:
    storage = Storage()
    location = Location(storage, dataset)
    write_generation(location, shard=1, generation=2, refuse=3)
    write_shards_index(location, "small")
    index = json.loads(Path(dataset, "shards.json").read_text())
    assert (index["__kind__"], index["wids_version"], index["name"]) == ("wids-shard-index-v1", 1, "small")
    assert [(entry["url"][:17], entry["nsamples"]) for entry in index["shardlist"]] == [
        ("shards/sa_000000-", 2),
        ("shards/sa_000002-", 2),
    ]
    for entry in index["shardlist"]:
        assert Path(dataset, entry["url"]).stat().st_size == entry["filesize"]


def test_webdataset_reads_what_the_index_names(dataset: str) -> None:
    import webdataset

    write_shards_index(location_of(dataset), "small")
    index = json.loads(Path(dataset, "shards.json").read_text())
    urls = [f"{dataset}/{entry['url']}" for entry in index["shardlist"]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"].rpartition("/")[2] for sample in samples] == [
        "sa_1",
        "sa_2",
        "sa_4",
        "sa_5",
        "sa_7",
        "sa_8",
    ]
    assert len(samples) == sum(entry["nsamples"] for entry in index["shardlist"])
    assert samples[0]["jpg"].shape == (60, 80, 3)
    assert len(samples[0]["json"]["annotations"]) == 2
