"""Documents from files of text, Markdown, HTML and PDF, or from rows. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from alignflow.data import read_source
from alignflow.errors import DataError
from alignflow.recipe import DATA_SUFFIXES, DataSource, is_builtin, is_hub_id, is_ledger

TEXT_SUFFIXES = (".txt", ".md", ".markdown")
PAGE_SUFFIXES = (".html", ".htm")
DOCUMENT_SUFFIXES = (*TEXT_SUFFIXES, *PAGE_SUFFIXES, ".pdf")
UNREAD_TAGS = {"script", "style", "head", "noscript", "template"}
BLOCK_TAGS = {
    *("p", "div", "section", "article", "main", "table", "tr", "ul", "ol", "dl", "dt", "dd"),
    *("blockquote", "pre", "br", "hr", "header", "footer", "nav", "aside", "figure"),
}


class Document(NamedTuple):
    """A text and what it is called; headings begin with `#`, paragraphs end with a blank line."""

    name: str
    text: str


def document_files(source: str) -> list[tuple[str, Path]]:
    """Names and files of the documents of a source, sorted; none where its documents are rows."""
    if is_builtin(source) or is_ledger(source) or is_hub_id(source):
        return []
    place = Path(source).expanduser().absolute()
    if place.is_file():
        return [(place.name, place)] if _is_document(place) else []
    if place.is_dir():
        inside = [path for path in sorted(place.rglob("*")) if _is_document(path)]
        hidden = [p for p in inside if any(part[0] == "." for part in p.relative_to(place).parts)]
        return [(p.relative_to(place).as_posix(), p) for p in inside if p not in hidden]
    pattern = place.relative_to(place.anchor).as_posix()
    found = [path for path in sorted(Path(place.anchor).glob(pattern)) if _is_document(path)]
    return [(path.name, path) for path in found]


def _is_document(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in DOCUMENT_SUFFIXES


def documents_of(source: DataSource, *, seed: int, path: str | None = None) -> list[Document]:
    """The documents of a source, in the order of their names or rows.

    Raises:
        DataError: There are none, or one cannot be read.
    """
    if files := document_files(source.source):
        documents = [Document(name, text_of(file)) for name, file in files]
    else:
        documents = list(_of_rows(source, seed, path))
    kept = [document for document in documents if document.text.strip()]
    if not kept:
        kinds = ", ".join((*DOCUMENT_SUFFIXES, *DATA_SUFFIXES))
        raise DataError(
            f"{source.source}: no document has text. Documents are files that end in {kinds}; of a "
            "PDF that was scanned, give the recognised text."
        )
    return kept


def _of_rows(source: DataSource, seed: int, path: str | None) -> Iterator[Document]:
    for row in read_source(source, seed=seed, path=path):
        fields = row.fields or {}
        if not isinstance(fields.get("text"), str):
            has = ", ".join(sorted(fields)) or row.message or "nothing"
            raise DataError(
                f"{row.place}: a document has the column `text`; this row has {has}. Map it "
                "(`columns: {text: NAME}`)."
            )
        named = (fields.get(column) for column in ("name", "title", "id"))
        name = next((str(value) for value in named if value not in (None, "")), row.place)
        yield Document(name, fields["text"])


def text_of(file: Path) -> str:
    """A file's text, headings marked by `#`.

    Raises:
        DataError: It cannot be read as what its suffix says.
    """
    if file.suffix.lower() == ".pdf":
        return _pdf_text(file)
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Save it as UTF-8.") from error
    return page_text(content) if file.suffix.lower() in PAGE_SUFFIXES else content


def _pdf_text(file: Path) -> str:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise DataError(
            f"{file}: PDF is read with the package pypdf, which is not installed. "
            "`pip install 'alignflow[documents]'`."
        ) from error
    try:
        pages = [page.extract_text() for page in PdfReader(file).pages]
    except (PyPdfError, OSError, ValueError) as error:
        raise DataError(
            f"{file}: the PDF cannot be read ({error}). Export it again without a password, or give "
            "its text."
        ) from error
    return "\n\n".join(pages)


def page_text(content: str) -> str:
    """What a page of HTML says, its headings marked by `#`, a blank line between blocks."""
    page = _Page()
    page.feed(content)
    page.close()
    blocks = (re.sub(r"\s+", " ", block).strip() for block in "".join(page.parts).split("\0"))
    return "\n\n".join(block for block in blocks if block.strip("#- "))


class _Page(HTMLParser):
    """Text in blocks that end with NUL."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unread = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._unread += tag in UNREAD_TAGS
        if re.fullmatch(r"h[1-6]", tag):
            self.parts.append("\0" + "#" * int(tag[1]) + " ")
        elif tag == "li":
            self.parts.append("\0- ")
        elif tag in BLOCK_TAGS:
            self.parts.append("\0")
        elif tag in ("td", "th"):
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in UNREAD_TAGS:
            self._unread = max(0, self._unread - 1)
        if re.fullmatch(r"h[1-6]|li", tag) or tag in BLOCK_TAGS:
            self.parts.append("\0")

    def handle_data(self, data: str) -> None:
        if not self._unread:
            self.parts.append(data.replace("\0", " "))
