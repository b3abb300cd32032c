"""Word vectors from a text file: GloVe (Pennington et al., EMNLP 2014) and fastText (Bojanowski et
al., TACL 2017) share the format ``word v_1 ... v_D``, one word a line; fastText heads the file with
``n_words D``.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from language.text_encoder import TextEncoder, unit_rows
from utilities.checksums import stamp

SUFFIXES = (".txt", ".vec", ".txt.gz", ".vec.gz")
TOKEN = re.compile(r"[^\W_]+")  # runs of letters and digits


class WordVectors(TextEncoder):
    """Embeds a text as the mean vector of its lower-cased words that have one.

    The words of a prompt weigh as much as the name: ``--language_prompt "{}"`` suits word vectors
    better than ``"a photo of a {}"``. The file is streamed once for each call with new words.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(
                f"--language_model {path}: no such word-vector file; give one in GloVe or fastText "
                "text format (word v_1 ... v_D, one word a line)"
            )
        self.name = str(path)
        self.path = path.resolve()
        self.fingerprint = f"mean of words {stamp(self.path)}"
        self.dim = self._read_dim()
        self.vectors: dict[str, NDArray[np.float32]] = {}
        self.absent: set[str] = set()

    def encode(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokens(texts)
        means = np.zeros((len(texts), self.dim), np.float32)
        for row, words in enumerate(tokens):
            known = [self.vectors[word] for word in words if word in self.vectors]
            if known:
                means[row] = np.mean(known, axis=0)
        return unit_rows(torch.from_numpy(means), self.name)

    def unknown(self, texts: Sequence[str]) -> Tensor:
        shares = [
            sum(word in self.absent for word in words) / len(words) if words else 1
            for words in self._tokens(texts)
        ]
        return torch.tensor(shares, dtype=torch.float32)

    def _tokens(self, texts: Sequence[str]) -> list[list[str]]:
        """The words of each text, looked up: they are in ``vectors`` or in ``absent``."""
        tokens = [TOKEN.findall(text.lower()) for text in texts]
        new = {word for words in tokens for word in words} - self.vectors.keys() - self.absent
        if new:
            self._read_vectors(new)
        return tokens

    def _read_dim(self) -> int:
        """D, the number of values after the first word of a line."""
        # The second line, since the first may be fastText's header; the first if it stands alone.
        lines = [line.split() for line in islice(self._lines(), 2)]
        dim = len(lines[-1]) - 1 if lines else 0
        if dim < 2:
            raise ValueError(
                f"--language_model {self.name} is not a word-vector file: expected lines of "
                "`word v_1 ... v_D`"
            )
        return dim

    def _read_vectors(self, wanted: set[str]) -> None:
        """Move ``wanted`` words into ``vectors``, or ``absent`` if the file lacks them."""
        for number, line in enumerate(self._lines(), start=1):
            token, _, values = line.partition(b" ")
            word = token.decode("utf-8", errors="replace")
            if word not in wanted:
                continue
            fields = values.split()
            if len(fields) > self.dim or (number == 1 and len(fields) == 1):
                continue  # a token that holds a space ("at name@host"), or fastText's header
            try:
                vector = np.array(fields, dtype=np.float32)
            except ValueError:
                vector = np.empty(0, np.float32)
            if len(vector) != self.dim:
                raise ValueError(
                    f"--language_model {self.name}, line {number}: expected {self.dim} numbers "
                    f"after {word!r}; is the file complete?"
                )
            self.vectors[word] = vector
            wanted.discard(word)
            if not wanted:
                return
        self.absent |= wanted

    def _lines(self) -> Iterator[bytes]:
        try:
            with (
                gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file
            ):
                yield from file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"--language_model {self.name} is not a complete gzip file: {error}"
            ) from error
