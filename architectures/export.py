"""Writes a trained embedder for use elsewhere.

    python -m architectures.export --checkpoint RUN --format all --out DIR

onnx          embedder.onnx: images to embeddings, for any batch size
torch_export  embedder.pt2: the same for ``torch.export.load``
safetensors   backbone.safetensors for timm, embedding.safetensors (the linear layer after it) and
              load_backbone.py, the lines that load the first

``preprocessing.json`` says how to prepare an image. Files are moved into DIR once all of them, read
back, agree with the embedder on random images.
"""

import argparse
import copy
import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from architectures.embedder import Embedder
from architectures.load import Trained, load_embedder
from architectures.naming import ArchitectureName
from architectures.weights import timm_options
from evaluation.preprocessing import preprocessing
from utilities import console

FORMATS = ("onnx", "safetensors", "torch_export")
ONNX_PACKAGES = {"onnx": "1.21.0", "onnxscript": "0.7.2", "onnxruntime": "1.23.2"}
ONNX_LIMIT = 2 * 10**9  # bytes; a protobuf file ends at 2 GiB

CHECKED_BATCHES = (1, 3)  # sizes other than the traced one
TOLERANCE = 1e-4  # of the largest entry of an embedding, at least of 1

Embed = Callable[[Tensor], Tensor]  # (B, 3, S, S) -> (B, D)


class Checked(NamedTuple):
    """A file that was read back, and the largest difference of its embeddings."""

    path: Path
    difference: float


class ToEmbeds(nn.Module):
    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor) -> Tensor:
        return self.embedder(images).embeds


def export(trained: Trained, formats: Sequence[str], out: Path) -> list[Checked]:
    """Write ``formats`` and preprocessing.json into the folder ``out``, beside what is there.

    Raises ValueError, and writes nothing, if a package is missing, the embedder is too large for
    ONNX, or a file does not agree with it.
    """
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std)
    # Without channels_last and gradients, neither of which belongs in a file.
    embedder = copy.deepcopy(trained.embedder).to(memory_format=torch.contiguous_format)
    embedder.eval().requires_grad_(False)
    if "onnx" in formats:
        check_onnx(embedder)
    generator = torch.Generator().manual_seed(0)
    shape = (sum(CHECKED_BATCHES), 3, prepare.image_size, prepare.image_size)
    images = torch.randn(shape, generator=generator)
    writers = {"onnx": _onnx, "safetensors": _safetensors, "torch_export": _torch_export}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export.") as temporary:
        folder = Path(temporary)
        written: list[Checked] = []
        for name in formats:
            path, embed = writers[name](trained, embedder, images, folder)
            written.append(Checked(path, _difference(embed, embedder, images, name)))
        text = json.dumps(about(trained), indent=2)
        (folder / "preprocessing.json").write_text(text + "\n", encoding="utf-8")
        for path in sorted(folder.iterdir()):
            path.chmod(0o644)
            path.replace(out / path.name)
    return [Checked(out / path.name, difference) for path, difference in written]


def about(trained: Trained) -> dict[str, Any]:
    """Return the content of preprocessing.json: how to prepare an RGB image, and the output."""
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std)
    return {
        "arch": trained.flags["arch"],
        "dataset": trained.flags["dataset"],
        "epoch": trained.epoch,
        "resize_shorter_side": round(prepare.image_size / prepare.crop_ratio),  # bilinear
        **prepare._asdict(),  # centre crop, then (value - mean) / std of values in [0, 1]
        "embed_dim": trained.embedder.embed_dim,
        "normalised": trained.embedder.normalize,
    }


def check_onnx(embedder: nn.Module) -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        install = " ".join(f"{name}=={version}" for name, version in ONNX_PACKAGES.items())
        raise ValueError(
            f"--format onnx needs {', '.join(missing)}; pip install {install}, or give --format "
            "safetensors or torch_export"
        )
    size = sum(value.nbytes for value in embedder.state_dict().values())
    if size > ONNX_LIMIT:
        raise ValueError(
            f"--format onnx: the weights take {size / 1e9:.1f} GB, but an ONNX file holds 2; use "
            "--format torch_export"
        )


def _onnx(trained: Trained, embedder: Embedder, images: Tensor, folder: Path) -> tuple[Path, Embed]:
    onnxruntime = importlib.import_module("onnxruntime")  # needed for this format alone
    path = folder / "embedder.onnx"
    torch.onnx.export(
        ToEmbeds(embedder).eval(),
        (images[:2],),
        str(path),
        input_names=["images"],
        output_names=["embeds"],
        dynamic_shapes=_any_batch(),
        dynamo=True,
        external_data=False,  # one file
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return path, lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def _torch_export(
    trained: Trained, embedder: Embedder, images: Tensor, folder: Path
) -> tuple[Path, Embed]:
    path = folder / "embedder.pt2"
    program = torch.export.export(
        ToEmbeds(embedder).eval(), (images[:2],), dynamic_shapes=_any_batch()
    )
    torch.export.save(program, str(path))
    return path, torch.export.load(str(path)).module()


def _safetensors(
    trained: Trained, embedder: Embedder, images: Tensor, folder: Path
) -> tuple[Path, Embed]:
    path, layer = folder / "backbone.safetensors", folder / "embedding.safetensors"
    for part, file in ((embedder.backbone, path), (embedder.embedding, layer)):
        state = {name: value.contiguous() for name, value in part.state_dict().items()}
        safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    name = ArchitectureName.parse(trained.flags["arch"]).backbone
    options = timm_options(name, trained.flags["image_size"])
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    features = "backbone(images)"
    if embedder.add_maximum:
        features = "mean + maximum of the last feature map (of the patch tokens of a transformer)"
    embeds = "features @ weight.T + bias" + ", scaled to length 1" * embedder.normalize
    lines = [
        f"# features = {features}",
        f"# embeds = {embeds}",
        f"# with weight (D, F) and bias (D,) of {layer.name}",
        "import timm",
        f'backbone = timm.create_model("{name}"{arguments}, checkpoint_path="{path.name}").eval()',
    ]
    (folder / "load_backbone.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    again = copy.deepcopy(embedder)
    again.backbone = timm.create_model(name, **options, checkpoint_path=str(path)).eval()
    again.embedding.load_state_dict(safetensors.torch.load_file(layer))
    return path, ToEmbeds(again)


def _any_batch() -> dict[str, dict[int, Any]]:
    return {"images": {0: torch.export.Dim("batch", min=1)}}


@torch.no_grad()
def _difference(embed: Embed, embedder: Embedder, images: Tensor, name: str) -> float:
    pairs = [(embed(batch), embedder(batch).embeds) for batch in images.split(CHECKED_BATCHES)]
    found, wanted = (torch.cat(side) for side in zip(*pairs, strict=True))
    difference = (found - wanted).abs().max().item()
    largest = max(1.0, wanted.abs().max().item())
    if not difference <= TOLERANCE * largest:  # a nan is not
        raise ValueError(
            f"--format {name}: the file differs by {difference:.1e} from the embedder, more than "
            f"{TOLERANCE * largest:.1e}; use another format for this backbone"
        )
    return difference


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m architectures.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="RUN",
        help="run folder, whose last.pt is read, or a checkpoint file",
    )  # fmt: skip
    parser.add_argument("--format", choices=(*FORMATS, "all"), default="all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out must be a folder; got the file {args.out}")
    formats = FORMATS if args.format == "all" else (args.format,)
    try:
        written = export(load_embedder(args.checkpoint), formats, args.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for path, difference in written:
        print(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, differs from the checkpoint by at most "
            f"{difference:.1e} (tolerance {TOLERANCE:.0e})"
        )


if __name__ == "__main__":
    console.outlast()
    main()
