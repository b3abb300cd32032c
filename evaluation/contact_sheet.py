"""Draws queries with the images that they find, for ``python -m evaluation.retrieve``."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from datasets.reading import read_image
from evaluation.image_index import printable
from evaluation.indexing import Hit
from utilities.files import atomic_path
from utilities.plots import drawable, font_file

TILE, GAP, LABEL = 160, 10, 34  # px: an image, the space between two, the text below
PER_LINE = 10  # neighbours in a line


def contact_sheet(images: Sequence[Path], found: Sequence[Sequence[Hit]], path: Path) -> None:
    """Draw each query, framed, with its neighbours to the right, and write them to a PNG.

    An image that has vanished since it was indexed is an empty tile.
    """
    columns = min(PER_LINE, max(map(len, found)))
    lines = [max(1, -(-len(hits) // columns)) for hits in found]
    width, height = TILE + GAP, TILE + LABEL + GAP
    sheet = Image.new("RGB", (width * (columns + 1) + 2 * GAP, height * sum(lines) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)

    def tile(path: Path, left: int, top: int, title: str) -> None:
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill="#eeeeee")
        try:
            image = read_image(path)
        except OSError:
            title += "  (gone)"
        else:
            image = image.resize([max(1, TILE * side // max(image.size)) for side in image.size])
            sheet.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))
        name = drawable(printable(path.name))
        name_font = font if name.isascii() else ImageFont.truetype(font_file(name), 12)
        while name_font.getlength(name) > TILE:
            name = name[:-2] + "…"
        draw.text((left, top + TILE + 3), title, fill="black", font=font)
        draw.text((left, top + TILE + 17), name, fill="#666666", font=name_font)

    top = GAP
    for image, hits, n_lines in zip(images, found, lines, strict=True):
        tile(image, GAP, top, "query")
        frame = (GAP - 3, top - 3, GAP + TILE + 2, top + TILE + 2)
        draw.rectangle(frame, outline="#1f77b4", width=3)
        for place, hit in enumerate(hits):
            line, column = divmod(place, columns)
            left = 2 * GAP + width * (column + 1)
            tile(hit.path, left, top + height * line, f"{hit.rank}.  {hit.similarity:.3f}")
        top += height * n_lines
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
