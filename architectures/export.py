"""Writes a trained embedder for use elsewhere.

    python -m architectures.export --checkpoint RUN --format all --out DIR

onnx          embedder.onnx: images to embeddings, for any batch size
torch_export  embedder.pt2: the same for ``torch.export.load``
safetensors   backbone.safetensors for timm, embedding.safetensors (the linear layer after it) and
              load_backbone.py, which embeds pictures with both

preprocess.py turns a picture into the input, by preprocessing.json. If there is a map from words
beside the checkpoint, words.safetensors holds it, and find_by_words.py finds pictures with it by
transformers. Files are moved into DIR once all of them, read back, agree with the embedder on
pictures: of the run's dataset, if it is there, or of --pictures.
"""

from architectures import export_flags
from utilities import startup

if __name__ == "__main__":  # a wrong flag need not wait for torch
    startup.begin()
    export_flags.parse()

import argparse
import importlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

import datasets
import language
from architectures.embedder import ROOT_FLOOR, Embedder
from architectures.load import Trained, load_embedder
from architectures.naming import ArchitectureName
from architectures.onnx_file import ToEmbeds, any_batch, check_onnx, detached, write_onnx
from architectures.weights import timm_options
from evaluation import exported_preprocess, word_map_file
from evaluation.exported_words import ExportedWords, write_words
from evaluation.feature_cache import digest_of_embeddings
from evaluation.preprocessing import preprocessing
from evaluation.sample_pictures import Pictures, sample_pictures
from language.encoders import encoder_source
from utilities import faults

CHECKED_BATCHES = (1, 3)  # sizes other than the traced one
N_PICTURES = sum(CHECKED_BATCHES)
TOLERANCE = 1e-4  # of the largest entry of an embedding, at least of 1

Embed = Callable[[Tensor], Tensor]  # (B, 3, S, S) -> (B, D)


SCRIPT = '''\
"""Embeds pictures with plain timm: python load_backbone.py PICTURE ... > embeds.json

Elsewhere, from load_backbone import embed; backbone(images) are the features.
"""

import json
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch

from preprocess import prepare

HERE = Path(__file__).parent
WEIGHTS = str(HERE / "backbone.safetensors")
backbone = timm.create_model("{name}"{arguments}, checkpoint_path=WEIGHTS).eval()
layer = safetensors.torch.load_file(HERE / "embedding.safetensors")  # weight (D, F), bias (D,)


@torch.no_grad()
def embed(images):
    """Return (B, D) embeddings of (B, 3, S, S) tensors from preprocess.py."""
    {features}
    embeds = torch.nn.functional.linear({read}, layer["weight"], layer["bias"])
    return {embeds}


if __name__ == "__main__":
    images = torch.from_numpy(np.stack([prepare(path) for path in sys.argv[1:]]))
    json.dump(embed(images).tolist(), sys.stdout)
'''


class Checked(NamedTuple):
    """A file that was read back, and how its embeddings differ from the embedder's."""

    path: Path
    difference: float  # the largest
    cosine: float  # the smallest


def export(
    trained: Trained,
    formats: Sequence[str],
    out: Path,
    pictures: Sequence[Path] = (),
    words: ExportedWords | None = None,
) -> tuple[list[Checked], str]:
    """Write ``formats`` and what prepares pictures into the folder ``out``, beside what is there.

    Args:
        pictures: files or folders to compare with; none for those of the run's dataset.
        words: a map that finds pictures by words, if there is one.

    Returns:
        the files with their differences, and the source of the pictures.

    Raises:
        ValueError: a package is missing, the embedder is too large for ONNX, a file cannot be made
            or does not agree with it. OSError: the disk is full. Then nothing is written.
    """
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std)
    embedder = detached(trained.embedder)
    if "onnx" in formats:
        try:
            check_onnx(embedder)
        except ValueError as error:
            others = "--format safetensors or torch_export writes other files"
            raise ValueError(f"--format onnx: {error}. {others}") from error
    writers = {"onnx": _onnx, "safetensors": _safetensors, "torch_export": _torch_export}
    with _beside(out.absolute()) as folder:
        text = json.dumps(about(trained), indent=2)
        (folder / "preprocessing.json").write_text(text + "\n", encoding="utf-8")
        shutil.copyfile(exported_preprocess.__file__, folder / "preprocess.py")
        with tempfile.TemporaryDirectory() as drawn:
            chosen = sample_pictures(prepare, pictures or _own(trained), N_PICTURES, Path(drawn))
            wanted = _in_batches(ToEmbeds(embedder), chosen)
            written: list[Checked] = []
            for name in formats:
                try:
                    path, found = writers[name](trained, embedder, chosen, folder)
                    written.append(Checked(path, *_difference(found, wanted)))
                except Exception as error:  # each library raises its own
                    raise _explained(error, name) from error
            if words is not None:
                path, found, cosines = write_words(words, folder, wanted)
                written.append(Checked(path, *_difference(found, cosines)))
    return [checked._replace(path=out / checked.path.name) for checked in written], chosen.source


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files are moved into ``out`` on success."""
    existed = out.is_dir()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=".export.") as temporary:
            yield Path(temporary)
            for path in sorted(Path(temporary).iterdir()):
                path.replace(out / path.name)
    except BaseException as error:
        if not existed:
            with suppress(OSError):
                out.rmdir()
        if isinstance(error, OSError) and error.errno:
            text = f"--out {out}: {error.strerror}; nothing was written there"
            raise OSError(text) from error
        raise


def _explained(error: Exception, name: str) -> Exception:
    """Return an error of a writer as one line; errors of the machine are as they are."""
    for cause in (error, error.__context__):  # torch's zip writer hides the file's own
        if isinstance(cause, OSError) and cause.errno:
            return cause
    if faults.explanation(error):
        return error
    reason = faults.first_line(error)
    return ValueError(f"--format {name}: {reason}")


def _own(trained: Trained) -> list[Path]:
    """Return the folder of the run's dataset, which may have gone."""
    flags = argparse.Namespace(**{"source_path": None, **trained.flags})
    folder = datasets.source_folder(flags) / flags.dataset
    return [folder] if folder.is_dir() else []


def about(trained: Trained) -> dict[str, Any]:
    """Return the content of preprocessing.json: how to prepare an RGB image, and the output."""
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std)
    return {
        "arch": trained.flags["arch"],
        "dataset": trained.flags["dataset"],
        "epoch": trained.epoch,
        **prepare.settings(),
        "embed_dim": trained.embedder.embed_dim,
        "root": trained.embedder.root,
        "normalised": trained.embedder.normalize,
    }


def words_of(trained: Trained) -> ExportedWords:
    """Return the map beside a checkpoint, ready to be exported.

    Raises:
        ValueError, OSError: there is none, or it is damaged, does not fit the checkpoint, or reads
            words by what transformers cannot load.
    """
    file = word_map_file.map_file(trained.file)
    if not file.is_file():
        raise FileNotFoundError(word_map_file.why_none(trained.file, trained.data))
    stored = word_map_file.read(file)
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std)
    digest = digest_of_embeddings(trained.flags["arch"], prepare, trained.embedder)
    again = f"fit another: {word_map_file.COMMAND.format(trained.file)}"
    stored.check_embedder(digest, file, f"those of {trained.file}", again)
    source = encoder_source(stored.language_model)
    encoder = language.build_encoder(stored.language_model, torch.device("cpu"))
    texts = encoder.encode([*stored.probes])
    stored.check_encoder(texts, stored.language_model, file)
    return ExportedWords(stored, file, source, stored.map(texts))


def _onnx(
    trained: Trained, embedder: Embedder, pictures: Pictures, folder: Path
) -> tuple[Path, Tensor]:
    onnxruntime = importlib.import_module("onnxruntime")  # needed for this format alone
    path = folder / "embedder.onnx"
    write_onnx(embedder, pictures.images[:2], path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return path, _in_batches(
        lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0]), pictures
    )


def _torch_export(
    trained: Trained, embedder: Embedder, pictures: Pictures, folder: Path
) -> tuple[Path, Tensor]:
    path = folder / "embedder.pt2"
    program = torch.export.export(
        ToEmbeds(embedder).eval(), (pictures.images[:2],), dynamic_shapes=any_batch()
    )
    content = io.BytesIO()  # given the path, torch's writer ends the process if the disk is full
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())
    return path, _in_batches(torch.export.load(str(path)).module(), pictures)


def _safetensors(
    trained: Trained, embedder: Embedder, pictures: Pictures, folder: Path
) -> tuple[Path, Tensor]:
    path, layer = folder / "backbone.safetensors", folder / "embedding.safetensors"
    for part, file in ((embedder.backbone, path), (embedder.embedding, layer)):
        state = {name: value.clone().contiguous() for name, value in part.state_dict().items()}
        file.write_bytes(safetensors.torch.save(state, metadata={"format": "pt"}))
    script = folder / "load_backbone.py"
    script.write_text(_script(trained, embedder, pictures.images), encoding="utf-8")
    # In a process of its own, from the files alone.
    done = subprocess.run(
        [sys.executable, str(script), *map(str, pictures.paths)],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), f"status {done.returncode}")
        raise ValueError(f"load_backbone.py fails: {last}")
    return path, torch.tensor(json.loads(done.stdout))


def _script(trained: Trained, embedder: Embedder, images: Tensor) -> str:
    """Return the content of load_backbone.py."""
    name = ArchitectureName.parse(trained.flags["arch"]).backbone
    options = timm_options(name, images.shape[-1])
    features = ["features = backbone(images)  # (B, F)"]
    if embedder.add_maximum:
        features = [
            f"places = backbone.forward_features(images){_places(embedder, images)}",
            "features = places.mean(dim=1) + places.amax(dim=1)",
        ]
    read = f"features.sign() * (features.abs() + {ROOT_FLOOR}).sqrt()"
    return SCRIPT.format(
        name=name,
        arguments="".join(f", {key}={value!r}" for key, value in options.items()),
        features="\n    ".join(features),
        read=read if embedder.root else "features",
        embeds=("torch.nn.functional.normalize(embeds, dim=1)" if embedder.normalize else "embeds"),
    )


@torch.no_grad()
def _places(embedder: Embedder, images: Tensor) -> str:
    """Return the code that makes (B, h * w, F) of the output of the backbone's features."""
    output = embedder.backbone.forward_features(images[:1])  # type: ignore[operator]
    last = "[-1]" * isinstance(output, list | tuple)
    output = output[-1] if last else output
    if output.ndim == 3:
        return f"{last}[:, {embedder.n_prefix}:]"
    in_front = output.shape[1] == embedder.map_dim
    return last + (".flatten(2).transpose(1, 2)" if in_front else ".flatten(1, 2)")


@torch.no_grad()
def _in_batches(embed: Embed, pictures: Pictures) -> Tensor:
    return torch.cat([embed(batch) for batch in pictures.images.split(CHECKED_BATCHES)])


def _difference(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Return the largest difference of an entry and the smallest cosine; refuse large ones."""
    difference = (found - wanted).abs().max().item()
    limit = TOLERANCE * max(1.0, wanted.abs().max().item())
    if not difference <= limit:  # a nan is not
        raise ValueError(
            f"the file differs by {difference:.1e} from the embedder, more than {limit:.1e}; use "
            "another format for this backbone"
        )
    return difference, F.cosine_similarity(found.double(), wanted.double()).min().item()


def main(argv: Sequence[str] | None = None) -> None:
    parser, args = export_flags.parse(argv)
    formats = export_flags.FORMATS if args.format == "all" else (args.format,)
    with faults.reported(parser.error):
        trained = load_embedder(args.checkpoint)
        words, why = None, ""
        try:
            words = words_of(trained)
        except (OSError, ValueError) as error:
            why = str(error)
        written, source = export(trained, formats, args.out, args.pictures, words)
    print(f"compared with the checkpoint on {N_PICTURES} pictures: {source}")
    for path, difference, cosine in written:
        print(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, differs by at most {difference:.1e} "
            f"(tolerance {TOLERANCE:.0e}), cosine at least {cosine:.6f}"
        )
    if why:
        print(f"without search by words: {why}")


if __name__ == "__main__":
    main()
