"""Each fault of `make mutants` can still be planted, and the tests that must catch it are there."""

from collections import Counter

from tests.mutants import MUTANTS, ROOT


def test_every_fault_has_its_one_place_and_its_tests() -> None:
    places = {mutant.name: (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) for mutant in MUTANTS}
    assert {name: count for name, count in places.items() if count != 1} == {}
    assert [mutant.name for mutant in MUTANTS if mutant.old == mutant.new] == []
    tests = {test.partition("::")[0] for mutant in MUTANTS for test in mutant.tests.split()}
    assert [test for test in sorted(tests) if not (ROOT / test).exists()] == []
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []
