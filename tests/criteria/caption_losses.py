"""Stand-ins for what reads captions, and the CLIP that is made of them."""

import torch
import torch.nn.functional as F

from criteria.clip import CLIP
from language.text_encoder import TextEncoder
from utilities.structures import Batch, Embedding

FEATURES, DIM = 5, 4
SMALL = {"proj_dim": DIM, "width": 8, "layers": 2, "heads": 2}


class Letters:
    """A tokenizer of lower-case letters: 1 to 26, and 27 at the end."""

    vocabulary = 28

    def __init__(self, length):
        self.length = length

    def __call__(self, texts):
        words = [text[: self.length - 1] for text in texts]
        rows = [[*(ord(c) - 96 for c in word), 27] for word in words]
        mask = torch.arange(max(map(len, rows))) < torch.tensor([len(row) for row in rows])[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.tensor([i for row in rows for i in row])
        return ids, mask


class Hashes(TextEncoder):
    """A frozen encoder: a random unit row for each text, zero for a blank one."""

    name = fingerprint = "hashes"

    def encode(self, texts):
        rows = torch.zeros(len(texts), 6)
        for row, text in zip(rows, texts, strict=True):
            if text:
                seed = int.from_bytes(text.encode()[:7], "big")
                row.normal_(generator=torch.Generator().manual_seed(seed))
        return F.normalize(rows, dim=1)


def refuse(*_):
    raise AssertionError("what is not in use is not loaded")


def clip(text="frozen", *, seed=0, dtype=torch.float64, features=FEATURES, **chosen):
    torch.manual_seed(seed)
    readers = (refuse, Hashes) if text == "frozen" else (Letters, refuse)
    made = CLIP(features, *readers, text=text, **{**SMALL, "tokens": 9, **chosen})
    return made.to(dtype)


CAPTIONS = ("fox", "redcar", "sea", "a", "mountain", "cats", "treehouse")


def views(n_views=1, *, n=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n_views):
        features = torch.randn(n, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
        made.append(Embedding(features, features.requires_grad_(), features[:, :, None, None]))
    return made


def batch(captions=CAPTIONS, n=None):
    n = len(captions) if n is None else n
    return Batch(
        (torch.zeros(n, 3, 2, 2),), torch.zeros(n, dtype=torch.long), torch.arange(n), captions
    )
