"""Draws queries with the images that they find, for ``python -m evaluation.retrieve``."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from datasets.reading import read_image
from evaluation.image_index import folder_of
from evaluation.nearest import Hit
from evaluation.queries import Query
from utilities.console import printable
from utilities.files import atomic_path
from utilities.plots import drawable, font_file

TILE, GAP, LABEL = 160, 10, 48  # px: an image, the space between two, the text below
PER_LINE = 10  # neighbours in a line
SIZES = (24, 18, 14, 11)  # px, of words in the place of an image, the largest that fits

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    queries: Sequence[Query], found: Sequence[Sequence[Hit]], path: Path, root: Path | None = None
) -> None:
    """Draw each query, framed, with its neighbours to the right, and write them to a PNG.

    Below a neighbour stand its name and its folder, as seen from ``root``. Words stand in the
    place of an image, or below the one that they are mixed with. An image that has vanished since
    it was indexed is an empty tile.

    Args:
        root: indexed folder; None leaves the folders out.
    """
    columns = max(1, min(PER_LINE, max(map(len, found))))
    lines = [max(1, -(-len(hits) // columns)) for hits in found]
    width, height = TILE + GAP, TILE + LABEL + GAP
    sheet = Image.new("RGB", (width * (columns + 1) + 2 * GAP, height * sum(lines) + GAP), "white")
    draw = ImageDraw.Draw(sheet)

    def tile(image: Path, left: int, top: int, title: str, *lines: str) -> None:
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill="#eeeeee")
        try:
            picture = read_image(image)
        except OSError:
            title += "  (gone)"
        else:
            size = [max(1, TILE * side // max(picture.size)) for side in picture.size]
            place = (left + (TILE - size[0]) // 2, top + (TILE - size[1]) // 2)
            sheet.paste(picture.resize(size), place)
        label(left, top, title, image.name, *lines)

    def label(left: int, top: int, title: str, *lines: str) -> None:
        draw.text((left, top + TILE + 3), title, fill="black", font=_font(title, 12))
        for number, line in enumerate(lines, start=1):
            line = drawable(printable(line))
            font = _font(line, 12)
            place = (left, top + TILE + 3 + 14 * number)
            draw.text(place, _cut(line, font), fill="#666666", font=font)

    top = GAP
    for query, hits, n_lines in zip(queries, found, lines, strict=True):
        if query.image is None:
            middle = (GAP + TILE // 2, top + TILE // 2)
            text, font = _fitting(query.words or "")
            draw.multiline_text(middle, text, fill="black", font=font, anchor="mm", align="center")
            label(GAP, top, "query")
        else:
            tile(query.image, GAP, top, "query", *([f"+ {query.words}"] if query.words else []))
        frame = (GAP - 3, top - 3, GAP + TILE + 2, top + TILE + 2)
        draw.rectangle(frame, outline="#1f77b4", width=3)
        for place, hit in enumerate(hits):
            line, column = divmod(place, columns)
            left = 2 * GAP + width * (column + 1)
            folder = folder_of(hit.path, root) if root else ""
            title = f"{hit.rank}.  {hit.similarity:.3f}"
            tile(hit.path, left, top + height * line, title, *([folder] if folder else []))
        top += height * n_lines
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _font(text: str, size: int) -> Font:
    """Return a font that has the characters of a ``drawable`` text."""
    if text.isascii():
        return ImageFont.load_default(size)
    return ImageFont.truetype(font_file(text), size)


def _cut(line: str, font: Font) -> str:
    """Return a line that fits below a tile: of a longer one, its beginning and its end."""
    whole, kept = line, len(line)
    while font.getlength(line) > TILE:
        kept -= 1
        line = whole[: kept - kept // 2] + "…" + whole[len(whole) - kept // 2 :]
    return line


def _fitting(words: str) -> tuple[str, Font]:
    """Return words in lines that fit into a tile, and their font; what is too long is cut."""
    words = drawable(printable(words))
    for size in SIZES:
        font = _font(words, size)
        lines = [*_lines(words, font, TILE - 2 * GAP)]
        most = (TILE - 2 * GAP) * 2 // (3 * size)
        if len(lines) <= most:
            break
    else:
        lines = [*lines[: most - 1], "…"]
    return "\n".join(lines), font


def _lines(words: str, font: Font, width: int) -> Iterator[str]:
    """Break words into lines of at most ``width`` pixels, between words or within a long one."""
    line = ""
    for word in words.split():
        for piece in (f" {word}",) if font.getlength(word) <= width else (" ", *word):
            if font.getlength((line + piece).strip()) > width:
                yield line
                line = ""
            line = (line + piece).lstrip()
    yield line
