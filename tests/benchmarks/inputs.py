"""Time the input pipeline against the usual one of PIL and torchvision, in images per second.

    python -m tests.benchmarks.inputs --workers 2 --rounds 5

Synthetic photographs of 500 x 375 are written as JPEG of quality 90: noise with the amplitudes of
natural images, 1 / f, and correlated channels. They have about as many bytes as photographs of
CUB-200 or ImageNet of that size (some 100 KB), and so take as long to decode. The operating system
caches them: a cold disk adds its own time.

    plain    Image.open(path).convert("RGB"), RandomResizedCrop(224) or Resize(256) and
             CenterCrop(224), flip, ToTensor, Normalize, torch's DataLoader: the field's usual
    default  datasets.loader and datasets.finish
    cached   the same with --cache_images, after the store was built

All run in turn in each round, on the same rows with as many workers; the table has medians over the
rounds, and the ratios are of these. The time of a round includes normalising on the device, which
the plain pipeline does in its workers; the first round, in which workers start, is not counted.
All processes keep freed memory, as main.py does (utilities.memory).
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as usual

import datasets
from datasets import ImageSet
from datasets.image_cache import cached
from datasets.transforms import CropTransform, shorter_side
from tests.benchmarks.machine import processor
from utilities.memory import keep_freed_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATIO = 0.875  # of the middle that evaluation takes: 224 of 256


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw noise of amplitude 1 / f^1.1 in each channel, three quarters of it common to all."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf

    def noise() -> NDArray[np.float64]:
        waves = rng.standard_normal((2, *frequency.shape))
        plane = np.fft.irfft2((waves[0] + 1j * waves[1]) / frequency**1.1, s=(height, width))
        return plane / plane.std()

    common = noise()
    channels = np.stack([common + 0.35 * noise() for _ in range(3)], axis=-1)
    return Image.fromarray(np.clip(128 + 50 * channels, 0, 255).astype(np.uint8))


def write(folder: Path, n: int, size: tuple[int, int], quality: int) -> ImageSet:
    rng = np.random.default_rng(0)
    paths = []
    for row in range(n):
        paths.append(folder / f"{row:05d}.jpg")
        photograph(rng, *size).save(paths[-1], quality=quality)
    return ImageSet("photographs", tuple(paths), np.zeros(n, dtype=np.int64), ("noise",))


class Plain(Dataset):
    """The usual dataset of image files."""

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Any]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        image = Image.open(self.images.paths[row]).convert("RGB")
        return self.transform(image), int(self.images.labels[row])


def plain_transform(side: int, training: bool) -> Callable[[Image.Image], Any]:
    parts = (
        [usual.RandomResizedCrop(side), usual.RandomHorizontalFlip()]
        if training
        else [usual.Resize(shorter_side(side, RATIO)), usual.CenterCrop(side)]
    )
    return usual.Compose([*parts, usual.ToTensor(), usual.Normalize(MEAN, STD)])


def our_transform(side: int, training: bool) -> CropTransform[Any]:
    if training:
        return datasets.train_views(side)[0]
    return datasets.eval_transform(side, RATIO, MEAN, STD)


def plain_loader(images: ImageSet, side: int, training: bool, bs: int, workers: int) -> Any:
    return DataLoader(
        Plain(images, plain_transform(side, training)),
        batch_size=bs,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def our_loader(images: ImageSet, side: int, training: bool, bs: int, workers: int) -> Any:
    rows: list[tuple[int, ...]] = [(row,) for row in range(len(images))]
    batches = [rows[start : start + bs] for start in range(0, len(rows), bs)]
    transform: Any = our_transform(side, training)
    return datasets.loader(images, [transform], batches, workers=workers, seed=0)


def seconds(loader: Iterable[Any], ours: bool, device: torch.device) -> float:
    """Time one pass, until the network's input is on the device."""
    start = time.perf_counter()
    for batch in loader:
        if ours:
            datasets.finish(batch.to(device), MEAN, STD)
        else:
            batch[0].to(device, non_blocking=True, memory_format=torch.channels_last)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(
    images: ImageSet,
    kept: ImageSet,
    side: int,
    bs: int,
    workers: int,
    rounds: int,
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("| | pipeline | images/s | slowest to fastest round | ratio |\n|---|---|---|---|---|")
    for training, name in ((True, "training views"), (False, "evaluation")):
        setting = (side, training, bs, workers)
        loaders = {
            "plain": plain_loader(images, *setting),
            "default": our_loader(images, *setting),
            "cached": our_loader(kept, *setting),
        }
        speeds: dict[str, list[float]] = {pipeline: [] for pipeline in loaders}
        for turn in range(rounds + 1):
            for pipeline, loader in loaders.items():
                took = seconds(loader, pipeline != "plain", device)
                if turn:
                    speeds[pipeline].append(len(images) / took)
        for pipeline, found in speeds.items():
            ratio = median(found) / median(speeds["plain"])
            print(
                f"| {name} | {pipeline} | {median(found):,.0f} | {min(found):,.0f} to "
                f"{max(found):,.0f} | {ratio:.2f} |",
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), metavar=("W", "H"))
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs")
    parser.add_argument("--side", type=int, default=224, help="of the network's input")
    parser.add_argument("--bs", type=int, default=112)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where images are made (a temporary one)")
    args = parser.parse_args(argv)
    keep_freed_memory()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")
        images = write(Path(name), args.images, tuple(args.size), args.quality)
        kilobytes = np.mean([path.stat().st_size for path in images.paths]) / 1000
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        print(
            f"{args.images} JPEGs of {args.size[0]} x {args.size[1]}, {kilobytes:.0f} KB each, to "
            f"{args.side} px; {args.workers} workers, bs {args.bs}, {args.rounds} rounds; "
            f"{processor()}, {os.cpu_count()} cores, {device}"
        )
        start = time.perf_counter()
        kept = cached(images, shorter_side(args.side, RATIO), args.workers)
        took = time.perf_counter() - start
        size = sum(path.stat().st_size for path in kept.reader.folder.iterdir())
        print(f"the store: {args.images / took:,.0f} images/s to build, {size / 1e6:.0f} MB\n")
        compare(images, kept, args.side, args.bs, args.workers, args.rounds)


if __name__ == "__main__":
    main()
