"""Sums about redaction over many images, for the summary of a build, the status, the audit, and the report."""

from dataclasses import dataclass

from segmint.infra.wording import counted, share

HIGH_SHARE = 0.15
"""An image counts as highly redacted if more than this share of its pixels is redacted."""


@dataclass(frozen=True)
class RedactionTotals:
    """Sums about redaction of images, and the images with the highest redacted shares over `HIGH_SHARE`."""

    unconfirmed: int = 0  # detections that a second look didn't confirm
    left_alone: int = 0  # detections that a person wanted left alone
    highly_redacted: int = 0  # images
    worst: tuple[tuple[str, float], ...] = ()  # image_id and share

    def lines(self, width: int = 0) -> list[str]:
        """Return lines of text, each with a heading, padded to `width` characters. Empty if all sums are 0."""
        lines = []
        if self.highly_redacted:
            worst = ", ".join(f"{name} {share(redacted)}" for name, redacted in self.worst)
            images = counted(self.highly_redacted, "image")
            lines.append(f"{'redacted ':{width}}over {share(HIGH_SHARE)} of {images}; the worst: {worst}")
        visible = []
        if self.unconfirmed:
            visible.append(f"{counted(self.unconfirmed, 'detection')} that a second look didn't confirm")
        if self.left_alone:
            visible.append(f"{counted(self.left_alone, 'detection')} released by a person")
        if visible:
            lines.append(f"{'visible ':{width}}{' and '.join(visible)}")
        return lines
