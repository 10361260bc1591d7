"""The inventory compares what commits name with what is in storage."""

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.inventory import Inventory, read_files, take_inventory
from tests.support.locations import location_of


def test_what_commits_name_is_compared_with_what_is_there(dataset: str) -> None:
    location = location_of(dataset)
    commit = CommitLog(location).read(0, 1)
    assert commit is not None
    inventory = take_inventory(location)
    assert [each.key for each in inventory.latest] == [each.key for each in CommitLog(location).latest_commits()]
    cut, changed, gone, whole = commit.files
    (location / cut.path).put((location / cut.path).read()[:-1])
    (location / changed.path).put(b"x" * changed.size)
    (location / gone.path).delete()
    found = list(read_files(location, commit))
    assert [(file.entry, file.size) for file in found] == [
        (cut, cut.size - 1), (changed, changed.size), (gone, None), (whole, whole.size)
    ]  # fmt: skip
    assert [file.intact for file in found] == [False, False, False, True]
    # What was listed keeps its size, and what wasn't is looked up.
    assert [file.size for file in inventory.find_files(commit)] == [entry.size for entry in commit.files]
    later = Inventory(location, [], {})
    assert [file.size for file in later.find_files(commit)] == [file.size for file in found]
