"""Turns texts into token ids, for a text tower that is trained here."""

from collections.abc import Sequence

import torch
from torch import Tensor

from language import ENCODERS
from language.encoders import load_tokenizer, read_source, resolve, unknown_share
from language.word_vectors import SUFFIXES


class Tokenizer:
    """The tokenizer of the model that ``--language_model`` names, without the model.

    A text of at most ``length`` tokens ends in the tokenizer's end mark, even if it is cut. If a
    tokenizer adds no marks, like GPT-2's, the end mark is appended here.

    Raises:
        FileNotFoundError: the folder or package does not exist, or the hub cannot be reached.
        ValueError: the model has no usable tokenizer, or ``length`` leaves no room for a word.
    """

    def __init__(self, name: str, length: int = 77) -> None:
        if name not in ENCODERS and name.endswith(SUFFIXES):
            raise ValueError(
                f"--language_model {name} has vectors of words and no tokenizer; use "
                "--loss_clip_text frozen, or a model with a tokenizer such as minilm"
            )
        self.name = name
        self.length = length
        self.tokenizer = read_source(name, resolve(name), load_tokenizer)
        self.vocabulary = len(self.tokenizer)
        marks = self.tokenizer("").input_ids
        self.end = [] if marks else [self.tokenizer.eos_token_id]
        if self.tokenizer.pad_token_id is None or self.end == [None]:
            raise ValueError(
                f"--language_model {name}: its tokenizer has no token to end or to pad a text "
                "with; use another model, such as minilm"
            )
        least = len(marks) + len(self.end) + 1
        if length < least:
            raise ValueError(
                f"--loss_clip_tokens must be >= {least} to hold a word and the marks of "
                f"--language_model {name}; got {length}"
            )

    def unknown(self, texts: Sequence[str]) -> Tensor:
        """Return (N,) float32, the share of each text's tokens that are unknown."""
        return unknown_share(self.tokenizer, texts, self.length)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids (B, L) int64, padded on the right, and mask (B, L) bool, True at the text."""
        longest = self.length - len(self.end)
        encoded = self.tokenizer(list(texts), truncation=True, max_length=longest)
        rows = [row + self.end for row in encoded.input_ids]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
        ids = torch.full((len(rows), max(map(len, rows), default=0)), self.tokenizer.pad_token_id)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        ids[mask] = torch.tensor([i for row in rows for i in row], dtype=torch.long)
        return ids, mask
