"""Writes a map from words to images for use elsewhere, and the program that uses it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.word_map_file import StoredMap

MAP, PROGRAM = "words.safetensors", "find_by_words.py"

TEXT = '''\
"""Finds pictures by words: python find_by_words.py embeds.json "red panda" ... > found.jsonl

embeds.json holds the embeddings of pictures, as load_backbone.py prints them. Each line of the
output is for one text and lists the pictures, best first: [number from 0, cosine].
"""

import json
import sys
{imports}

import safetensors.torch
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

ENCODER = {encoder}
tokenizer, model = AutoTokenizer.from_pretrained(ENCODER), AutoModel.from_pretrained(ENCODER)
model = model.float().eval()
words = safetensors.torch.load_file(Path(__file__).with_name("words.safetensors"))


@torch.no_grad()
def embed(text):
    """Return the query for pictures of a text, (D,), of length 1."""
    options = {{"truncation": True, "return_tensors": "pt"}}
    if model.config.model_type in ("siglip", "siglip2"):  # as in its training
        tokenizer.padding_side = "right"
        length = model.config.text_config.max_position_embeddings
        text, options = text.lower(), options | {{"padding": "max_length", "max_length": length}}
    ids = tokenizer(text, **options).input_ids
    if hasattr(model, "get_text_features"):  # CLIP and its kin
        found = model.get_text_features(ids)
        found = getattr(found, "pooler_output", found)  # a tensor in transformers 4
    else:  # the mean over the tokens
        reader = model.get_encoder() if model.config.is_encoder_decoder else model
        found = reader(ids).last_hidden_state.mean(dim=1)
    return normalize((normalize(found) - words["text_mean"]) @ words["weight"])[0]


if __name__ == "__main__":
    pictures = normalize(torch.tensor(json.loads(Path(sys.argv[1]).read_text())))  # (N, D)
    for text in sys.argv[2:]:
        cosines, rows = (pictures @ embed(text)).sort(descending=True, stable=True)
        found = zip(rows.tolist(), cosines.tolist())
        print(json.dumps({{"words": text, "pictures": [*found]}}))
'''


class ExportedWords(NamedTuple):
    """A map with what its program needs."""

    stored: StoredMap
    file: Path
    encoder: str  # of Hugging Face: an id, a folder, or package:<module>/<folder>
    vectors: Tensor  # (P, D), queries of the probes by the product


def write_words(words: ExportedWords, folder: Path, embeds: Tensor) -> tuple[Path, Tensor, Tensor]:
    """Write words.safetensors and find_by_words.py into a folder, and run the latter.

    Args:
        embeds: (N, D) of some pictures.

    Returns:
        the file of the map, and the cosines (P, N) of probes and pictures: as the program, in a
        process of its own, finds them, and as the product does.

    Raises:
        ValueError: the program fails.
    """
    shutil.copyfile(words.file, folder / MAP)
    imports, encoder = "from pathlib import Path", repr(words.encoder)
    if words.encoder.startswith("package:"):
        module, _, inside = words.encoder.removeprefix("package:").partition("/")
        imports = f"from importlib.resources import files\n{imports}"
        encoder = f'files("{module}") / "{inside}"  # pip install {module.replace("_", "-")}'
    program = folder / PROGRAM
    program.write_text(TEXT.format(imports=imports, encoder=encoder), encoding="utf-8")
    given = folder / "embeds.json"
    given.write_text(json.dumps(embeds.tolist()))
    done = subprocess.run(
        [sys.executable, str(program), str(given), *words.stored.probes],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    given.unlink()
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), f"status {done.returncode}")
        raise ValueError(f"{PROGRAM} fails: {last}")
    found = torch.full((len(words.vectors), len(embeds)), torch.nan)
    for cosines, line in zip(found, done.stdout.splitlines(), strict=True):
        for row, cosine in json.loads(line)["pictures"]:
            cosines[row] = cosine
    pictures = torch.nn.functional.normalize(embeds, dim=1)
    return folder / MAP, found, words.vectors @ pictures.T
