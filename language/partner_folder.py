"""The partners of each image as a folder that needs no more than numpy to be read.

partners.npy       (N, k) int64 rows, nearest first; -1 where there is none
similarities.npy   (N, k) float32 cosines; -inf where there is none
about.json         settings of the embedding and the search, and the results
entry.json         checksums of the others, which are verified whenever they are read
"""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utilities.checksums import CONTENTS, seal, verify
from utilities.files import atomic_folder, read_json
from utilities.run_folder import versions

LOG = logging.getLogger(__name__)

FORMAT = 1  # of about.json; raised whenever an older reader would misunderstand a newer one
PACKAGES = ("numpy", "torch", "transformers", "timm")  # may move a partner
CHUNK = 1 << 16  # characters of a JSON file read at a time


class Partners(NamedTuple):
    """The partners of N rows; memory-mapped where they were read from a folder."""

    partners: NDArray[np.int64]  # (N, k), nearest first; -1 where there is none
    similarities: NDArray[np.float32]  # (N, k) cosine, in [-1, 1]; -inf where there is none
    about: dict[str, Any]
    folder: Path | None = None


def save(folder: Path, found: Partners) -> None:
    """Write partners into a folder that exists, with statistics and versions in ``about``."""
    near = found.similarities[:, 0][found.partners[:, 0] >= 0]
    about = {
        "format": FORMAT, **found.about, "rows": len(found.partners), "k": found.partners.shape[1],
        "without_partner": int((found.partners[:, 0] < 0).sum()),
        "mean_similarity": round(float(near.mean()), 4) if len(near) else None,
        "versions": versions(PACKAGES),
    }  # fmt: skip
    np.save(folder / "partners.npy", found.partners.astype(np.int64, copy=False))
    np.save(folder / "similarities.npy", found.similarities.astype(np.float32, copy=False))
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def write(folder: Path, found: Partners) -> Partners:
    """Write a folder of partners, whole or not at all, and read it."""
    with atomic_folder(folder) as fresh:
        save(fresh, found)
        seal(fresh)
    return read(folder)


def is_there(folder: Path) -> bool:
    """Return whether a folder holds partners."""
    return (folder / "about.json").is_file()


def read(folder: Path, *, n: int | None = None, digest: str | None = None) -> Partners:
    """Read a folder of partners, of a set of ``n`` rows and this ``digest`` if given.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are damaged, or of another set.
    """
    if not is_there(folder):
        raise FileNotFoundError(
            f"{folder} holds no neighbours; make them: python -m language.neighbours --dataset "
            f"NAME --out {folder}"
        )
    try:
        if (folder / CONTENTS).is_file():
            verify(folder)
        else:
            LOG.warning("%s has no checksums (%s): damage would not be noticed", folder, CONTENTS)
        about = read_json(folder / "about.json")
        if about["format"] > FORMAT:
            raise ValueError(f"format {about['format']} is newer than this version's {FORMAT}")
        partners = np.load(folder / "partners.npy", mmap_mode="r")
        similarities = np.load(folder / "similarities.npy", mmap_mode="r")
        shape = (about["rows"], about["k"])
        if partners.shape != shape or similarities.shape != shape:
            raise ValueError(
                f"{partners.shape} partners and {similarities.shape} similarities instead of "
                f"{shape}"
            )
    except (ValueError, KeyError, TypeError, EOFError, FileNotFoundError) as error:
        raise ValueError(
            f"cannot read the neighbours in {folder} ({error}); delete the folder"
        ) from error
    if n is not None and about["rows"] != n:
        raise ValueError(
            f"{folder} holds the neighbours of {about['rows']} rows of {about.get('name')}, but "
            f"there are {n} now; make them again into another folder"
        )
    if digest is not None and about.get("content") != digest:
        raise ValueError(
            f"{folder} holds the neighbours of other images or captions (digest "
            f"{about.get('content')}, now {digest}); make them again into another folder"
        )
    return Partners(partners, similarities, about, folder)


def from_released_json(file: Path, keys: Sequence[str]) -> Partners:
    """Read the neighbours that El Banani et al. released, for the rows of a set.

    Their file is one list of ``[[directory, id], [directory, id], similarity]``, with a fourth
    value (a ratio) ignored. ``keys`` are paths ``<directory>/<id>`` with any suffix; a directory
    may be a shard, ``<directory>.tar``. Pairs with an unknown image are counted in ``about``.
    """
    if not file.is_file():
        raise FileNotFoundError(f"--from_json {file} does not exist")
    row_of = {_directory_and_id(key): row for row, key in enumerate(keys)}
    found: dict[int, list[tuple[float, int]]] = {}
    n_pairs = n_unknown = 0
    example = "nothing"
    for number, entry in enumerate(_entries(file)):
        try:
            (directory, image), (other_directory, other), similarity = entry[:3]
            cosine = float(similarity)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"--from_json {file}: entry {number} must be [[directory, id], [directory, id], "
                f"similarity]; got {str(entry)[:80]}"
            ) from error
        n_pairs += 1
        example = f"{directory}/{image}"
        row, partner = row_of.get(example), row_of.get(f"{other_directory}/{other}")
        if row is None or partner is None:
            n_unknown += 1
        elif row != partner:
            found.setdefault(row, []).append((cosine, partner))
    if not found:
        raise ValueError(
            f"--from_json {file}: none of its {n_pairs} pairs is of images of this set; its last "
            f"is of {example}, and the set begins with {next(iter(row_of), 'nothing')}"
        )
    k = max(map(len, found.values()))
    partners = np.full((len(keys), k), -1, np.int64)
    similarities = np.full((len(keys), k), -np.inf, np.float32)
    for row, pairs in found.items():
        pairs.sort(key=lambda pair: -pair[0])
        similarities[row, : len(pairs)], partners[row, : len(pairs)] = zip(*pairs, strict=True)
    about = {"pairs": n_pairs, "pairs_of_unknown_images": n_unknown}
    return Partners(partners, similarities, about)


def _directory_and_id(key: str) -> str:
    """``<directory>/<id>`` of a path; as released, an id ends at its first dot."""
    directory, _, file = key.replace("\\", "/").rpartition("/")
    return f"{directory.rpartition('/')[2].removesuffix('.tar')}/{file.partition('.')[0]}"


def _entries(file: Path) -> Iterator[Any]:
    """Decode a JSON list one entry at a time: as a whole it takes ten times the file's memory."""
    decoder = json.JSONDecoder()
    try:
        with file.open(encoding="utf-8-sig") as stream:
            text = stream.read(CHUNK).lstrip()
            if not text.startswith("["):
                raise ValueError(f"--from_json {file} must be a JSON list of pairs")
            text = text[1:]
            while True:
                text = text.lstrip(" \t\r\n,")
                if text.startswith("]"):
                    return
                try:
                    entry, end = decoder.raw_decode(text)
                except json.JSONDecodeError as error:
                    more = stream.read(CHUNK)
                    if not more:
                        raise ValueError(
                            f"--from_json {file} is cut short or is not JSON"
                        ) from error
                    text += more
                    continue
                yield entry
                text = text[end:]
    except (RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"--from_json {file} is not JSON: {error}") from error
