"""Text encoders, by name, Hugging Face id, local folder or word-vector file (``--language_model``).

The states of BERT-like models are averaged over the tokens that the attention mask shows, as in
Reimers and Gurevych, Sentence-BERT, EMNLP 2019; their pooler is never read. CLIP-like models
(Radford et al., ICML 2021) return the projected text embedding, which was trained against images.
SigLIP (Zhai et al., ICCV 2023) reads its last position, so its texts are padded to one length, in
lower case and without a mask, as in training.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from language import ENCODERS
from language.cache import CachedEncoder
from language.text_encoder import TextEncoder, unit_rows
from language.word_vectors import SUFFIXES, WordVectors
from utilities import hub
from utilities.checksums import digest, stamp
from utilities.registry import closest_first

T = TypeVar("T")

HUB_TIMEOUT = 10.0  # seconds until the hub counts as out of reach
HUB_FILES = (  # of a model in the hub's cache: one of each tuple
    ("config.json",),
    ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"),
    ("tokenizer.json", "vocab.json", "vocab.txt"),
)
LONGEST = 4096  # tokens, where neither the tokenizer nor the positions of a model set a limit
PADDED = ("siglip", "siglip2")  # types of models that read texts padded to full length


def build(name: str, device: torch.device, cache: Path | None) -> TextEncoder:
    """Return the encoder that ``--language_model`` names; a model is loaded when it is needed.

    Args:
        name: a key of ``ENCODERS``, a local Hugging Face folder, a word-vector file (``.txt`` or
            ``.vec``, also ``.gz``), or a Hugging Face id.
        cache: folder in which embeddings are kept; None keeps none.

    Raises:
        FileNotFoundError: the file, folder or package does not exist.
        ValueError: the folder holds no model, or the file no word vectors.
    """
    encoder: TextEncoder
    if name not in ENCODERS and name.endswith(SUFFIXES):
        encoder = WordVectors(Path(name).expanduser())
    else:
        encoder = TransformerEncoder(name, device)
    return encoder if cache is None else CachedEncoder(encoder, cache)


class TransformerEncoder(TextEncoder):
    """A Hugging Face model as a text encoder.

    Differs from sentence-transformers in that every model without a projected text embedding is
    averaged over its tokens, even if its authors took the first token.
    """

    def __init__(self, name: str, device: torch.device, *, bs: int = 32):
        self.name = name
        self.device = device
        self.bs = bs
        self.source = resolve(name)
        described = _describe(self.source) if isinstance(self.source, Path) else self.source
        self.fingerprint = f"projected text embedding (SigLIP padded), else mean {described}"

    def encode(self, texts: Sequence[str]) -> Tensor:
        rows = torch.zeros(len(texts), self.dim)
        # How a text is rounded depends on the shape of its batch. So that it does not depend on
        # the other texts, nor a run on what the cache holds, batches have one size and one length.
        by_length: dict[int, list[int]] = {}
        for row, text in enumerate(texts):
            if text.strip():
                by_length.setdefault(len(self._tokens([text]).input_ids[0]), []).append(row)
        for same in by_length.values():
            for start in range(0, len(same), self.bs):
                batch = same[start : start + self.bs]
                full = batch + batch[-1:] * (self.bs - len(batch))
                rows[batch] = self._embed([texts[row] for row in full])[: len(batch)]
        return unit_rows(rows, self.name)

    def unknown(self, texts: Sequence[str]) -> Tensor:
        tokenizer, _, max_tokens = self._loaded
        return unknown_share(tokenizer, texts, max_tokens)

    @cached_property
    def dim(self) -> int:
        return self._embed(["word"]).shape[1]

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> Tensor:
        """Embed one batch of texts, none blank: (N, D) on the CPU, of any length."""
        _, model, _ = self._loaded
        tokens = self._tokens(texts, padding=True, return_tensors="pt").to(self.device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]  # (N, L), (N, L)
        if hasattr(model, "get_text_features"):
            shown = None if model.config.model_type in PADDED else mask
            features = model.get_text_features(input_ids=ids, attention_mask=shown)
            # Transformers 4 returns the tensor, transformers 5 an output that holds it.
            return getattr(features, "pooler_output", features).cpu()
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state  # (N, L, D)
        shown = mask.unsqueeze(-1)  # (N, L, 1)
        return ((states * shown).sum(dim=1) / shown.sum(dim=1)).cpu()

    def _tokens(self, texts: list[str], **options: Any) -> Any:
        tokenizer, model, max_tokens = self._loaded
        if model.config.model_type in PADDED:
            texts = [text.lower() for text in texts]
            options["padding"] = "max_length"
        return tokenizer(texts, truncation=True, max_length=max_tokens, **options)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        """Tokenizer, model in evaluation mode on the device, and the most tokens that it reads."""
        tokenizer, model, missing = read_source(self.name, self.source, load)
        random = [key for key in missing if "pooler" not in key]  # which RoBERTa and others lack
        if random:
            raise ValueError(
                f"--language_model {self.name} lacks {len(random)} weights of its config.json "
                f"({', '.join(random[:3])}, ...); they would be random"
            )
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        if hasattr(model, "get_text_features"):
            model.vision_model = None  # only the words are read
        model = model.float().eval().to(self.device)
        return tokenizer, model, _max_tokens(tokenizer, model)


def encoder_source(name: str) -> str:
    """Return what transformers loads an encoder from elsewhere: an id, a folder or ``package:...``.

    ValueError for word vectors, which it cannot load.
    """
    if name not in ENCODERS and name.endswith(SUFFIXES):
        raise ValueError(f"{name} holds word vectors, which transformers does not read")
    source = ENCODERS.get(name, name)
    return source if source.startswith("package:") else str(resolve(name))


def resolve(name: str) -> Path | str:
    """Return the folder of a local or packaged model, or the id of one on the hub."""
    source = ENCODERS.get(name, name)
    if source.startswith("package:"):
        module, _, inside = source.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(module)
        folder = Path(spec.origin).parent / inside if spec and spec.origin else None
        if folder is None or not folder.is_dir():
            raise FileNotFoundError(
                f"--language_model {name} is in a package that is not installed; run "
                f"`pip install {module.replace('_', '-')}`"
            )
        return folder
    folder = Path(source).expanduser()
    if name not in ENCODERS and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"--language_model {name} is a folder without config.json; give one that "
                "save_pretrained wrote: config.json, weights and tokenizer"
            )
        return folder.resolve()
    if source.startswith((".", "~", "/")) or source.count("/") > 1:
        raise FileNotFoundError(
            f"--language_model {name}: no such folder. Known names, closest first: "
            + ", ".join(closest_first(name, ENCODERS))
        )
    return source


def at_hand(name: str) -> bool:
    """Return whether an encoder that ``build`` accepts can be loaded without a network."""
    if name not in ENCODERS and name.endswith(SUFFIXES):
        return True
    source = resolve(name)
    return isinstance(source, Path) or hub.has_cached(source, None, *HUB_FILES)


def read_source(name: str, source: Path | str, read: Callable[[str, bool], T]) -> T:
    """Call ``read(folder or id, local files only)``; of an id first locally, then from the hub.

    Raises:
        FileNotFoundError: the cache lacks something, and the hub cannot be reached.
        ValueError: the folder cannot be read.
    """
    # A data loader forks later, and tokenizers warns at each fork that it cannot thread there.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _quiet_transformers():
        if isinstance(source, str):
            return _read_from_hub(name, source, read)
        try:
            return read(str(source), True)
        except Exception as error:  # whatever the library meets in a broken folder
            raise ValueError(
                f"--language_model {name}: cannot read the model and tokenizer in {source}: "
                f"{_first_line(error)}"
            ) from error


def _read_from_hub(name: str, model_id: str, read: Callable[[str, bool], T]) -> T:
    import huggingface_hub

    try:
        return read(model_id, True)
    except (OSError, ValueError):
        pass  # not in the cache, or not all of it
    try:
        # One short question first: the download itself retries for minutes without a network.
        huggingface_hub.HfApi().model_info(model_id, timeout=HUB_TIMEOUT)
        return read(model_id, False)
    except Exception as error:  # connection, proxy, unknown id, gated model, full disk, ...
        raise FileNotFoundError(
            f"--language_model {name}: cannot get the Hugging Face model {model_id}. It is not "
            f"complete in the cache ({huggingface_hub.constants.HF_HUB_CACHE}), and the hub "
            f"raised {type(error).__name__}: {_first_line(error)}. Use --language_model minilm "
            "(from an installed package, works offline), --language_model FOLDER with a model "
            "saved by save_pretrained, or --language_model FILE.txt|.vec[.gz] with word vectors; "
            f"or run `hf download {model_id}` where there is a network and copy the cache. "
            "Known names, closest first: " + ", ".join(closest_first(name, ENCODERS))
        ) from error


def _describe(folder: Path) -> str:
    """Return a text that changes with any file in ``folder``."""
    return digest(map(stamp, sorted(path for path in folder.rglob("*") if path.is_file())))


def load_tokenizer(source: str, local_files_only: bool) -> Any:
    """Load the tokenizer of a folder or an id; to be called by ``read_source``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local_files_only)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # padding on the left would shift the positions
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # made of the config alone
        raise ValueError("its tokenizer has no words; save_pretrained one beside the weights")
    return tokenizer


def unknown_share(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Tensor:
    """Return (N,) float32, the share of unknown tokens of each text; 1 without any tokens."""
    if not texts:
        return torch.zeros(0)
    encoded = tokenizer(
        list(texts), add_special_tokens=False, truncation=True, max_length=max_tokens
    )
    unknown = tokenizer.unk_token_id  # None if a tokenizer reads bytes
    shares = [sum(i == unknown for i in ids) / len(ids) if ids else 1 for ids in encoded.input_ids]
    return torch.tensor(shares, dtype=torch.float32)


def load(source: str, local_files_only: bool) -> tuple[Any, Any, list[str]]:
    """Load tokenizer, model and the names of weights that the checkpoint lacks."""
    from transformers import AutoModel

    tokenizer = load_tokenizer(source, local_files_only)
    # Missing weights are drawn from the global generator: a run must not train differently because
    # it finds all words in the cache and loads no model.
    with torch.random.fork_rng(devices=[]):
        model, loading = AutoModel.from_pretrained(
            source, local_files_only=local_files_only, output_loading_info=True
        )
    return tokenizer, model, sorted(loading["missing_keys"])


def _max_tokens(tokenizer: Any, model: Any) -> int:
    """The longest input that tokenizer and positions of ``model`` allow."""
    limits = [tokenizer.model_max_length, LONGEST]
    for name, module in model.named_modules():
        positions = name.endswith(("position_embeddings", "position_embedding", "wpe"))
        if positions and isinstance(module, torch.nn.Embedding):
            # RoBERTa and MPNet count their positions from padding_idx + 1.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - first)
    return min(limits)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back load reports and progress bars; ``_loaded`` itself checks for missing weights."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
