"""What an image's metadata may say about training, and what segmint makes of it: one table.

docs/opt-outs.md has the same table. The vocabularies are those of PLUS (`plus:DataMining`, in the IPTC Photo Metadata
Standard since 2023.1), of the W3C community group's TDM Reservation Protocol, of C2PA 1.x and of CAWG 1.1.
"""

from dataclasses import dataclass
from enum import StrEnum

DATA_MINING = "plus:DataMining"
RESERVATION = "tdm:reservation"

_USES = ("ai_training", "ai_generative_training", "data_mining", "ai_inference")

TRAINING_MINING = tuple(f"{prefix}.{use}" for prefix in ("c2pa", "cawg") for use in _USES)
"""The entries of the assertions `c2pa.training-mining` and `cawg.training-mining` that the two vocabularies define."""

_PROHIBITED = "DMI-PROHIBITED"


class OptOutVerdict(StrEnum):
    """What a value says."""

    ALLOWED = "allowed"
    OPTED_OUT = "opted out"
    NOTHING = "says nothing"


@dataclass(frozen=True)
class OptOutRule:
    """A value of some fields, and its verdict. A value that ends in an asterisk is any other that begins like it."""

    fields: tuple[str, ...]
    value: str
    verdict: OptOutVerdict


RULES = (
    OptOutRule((DATA_MINING,), "DMI-UNSPECIFIED", OptOutVerdict.NOTHING),
    OptOutRule((DATA_MINING,), "DMI-ALLOWED", OptOutVerdict.ALLOWED),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-AIMLTRAINING", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-GENAIMLTRAINING", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-SEECONSTRAINT", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-SEELINKEDRIGHTSEXPR", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED*", OptOutVerdict.OPTED_OUT),
    OptOutRule((RESERVATION,), "0", OptOutVerdict.ALLOWED),
    OptOutRule((RESERVATION,), "1", OptOutVerdict.OPTED_OUT),
    OptOutRule(TRAINING_MINING, "allowed", OptOutVerdict.ALLOWED),
    OptOutRule(TRAINING_MINING, "notAllowed", OptOutVerdict.OPTED_OUT),
    OptOutRule(TRAINING_MINING, "constrained", OptOutVerdict.OPTED_OUT),
)
"""The first rule that fits a field and its value decides; a value that none fits says nothing."""


@dataclass(frozen=True)
class OptOut:
    """A field of an image's metadata that forbids training with it, and its value, as `RULES` spell them."""

    field: str
    value: str

    @property
    def detail(self) -> str:
        """The sentence that is stored with the refusal; it quotes nothing but the vocabularies."""
        return f"the image's metadata forbids training with it: {self.field} is {self.value}"


def rule_for(field: str, value: str) -> OptOutRule | None:
    """Return the rule that decides on a field's value, in any case; None: none does, and it says nothing.

    A value of PLUS is an address that ends in the term (`http://ns.useplus.org/ldf/vocab/DMI-ALLOWED`), the term alone,
    or the label of a prohibition that tools show ("Prohibited for AI/ML training").
    """
    value = value.strip()
    if field == DATA_MINING:
        is_label = value.lower().startswith("prohibited")
        value = _PROHIBITED if is_label else value.rstrip("/").rpartition("/")[2]
    fitting = (rule for rule in RULES if field in rule.fields and _fits(value.lower(), rule.value.lower()))
    return next(fitting, None)


def _fits(value: str, wanted: str) -> bool:
    return value.startswith(wanted[:-1]) if wanted.endswith("*") else value == wanted
