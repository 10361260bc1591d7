"""A page of HTML as a browser's parser sees it: elements with their attributes, and the text between them."""

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass(frozen=True)
class Element:
    """A start tag."""

    name: str
    attributes: dict[str, str]


@dataclass
class ParsedPage:
    """The content of a page; `text` is that of all elements except style, single-spaced."""

    elements: list[Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def all(self, name: str) -> list[Element]:
        """The elements of a name."""
        return [element for element in self.elements if element.name == name]


def parse_page(text: str) -> ParsedPage:
    """Parse a page; character references are resolved."""
    page = ParsedPage()

    class PageParser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            page.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

        def handle_data(self, data: str) -> None:
            if page.elements[-1:] != [] and page.elements[-1].name == "style" and "{" in data:
                return
            page.pieces.append(data)

    PageParser(convert_charrefs=True).feed(text)
    return page
