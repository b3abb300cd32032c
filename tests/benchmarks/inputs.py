"""Images per second of the input pipeline, beside the usual one of PIL and torchvision.

    python -m tests.benchmarks.inputs --workers 2 --rounds 5

Synthetic photographs of 500 x 375 are written as JPEG of quality 90: noise with the amplitudes of
natural images, 1 / f, and channels that go together. They take about as many bytes as the
photographs of CUB-200 or ImageNet of that size (some 100 KB), and so as long to decode. They lie in
the system's cache: a cold disk adds its own time.

    plain    Image.open(path).convert("RGB"), RandomResizedCrop(224) or Resize(256) and
             CenterCrop(224), flip, ToTensor, Normalize, torch's DataLoader: the field's usual
    default  datasets.loader and datasets.finish
    cached   the same with --cache_images, after the store was built

All run in turn in each round, on the same rows with as many workers; the table has medians over the
rounds, and the ratios are of these. What a round takes includes normalising on the device, which
the plain pipeline does in its workers; the first round, in which workers start, is not counted.
All processes keep freed memory, as main.py does (utilities.memory). Then come the stages, one after
the other in one thread, in milliseconds of processor time per image.
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
from datasets.loading import Sample, collate
from datasets.reading import Decoded, open_image, read_image
from datasets.transforms import CropTransform, shorter_side
from tests.benchmarks.machine import processor
from utilities.memory import keep_freed_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATIO = 0.875  # of the middle that evaluation takes: 224 of 256


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise of amplitude 1 / f^1.1 in each channel, three quarters of it common to all."""
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
    """The usual dataset of files."""

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
    """Of one pass, until the network's input is on the device."""
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


def milliseconds(work: Callable[[Any], Any], items: Sequence[Any], rounds: int) -> float:
    """Of one item; the median over rounds."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        for item in items:
            work(item)
        found.append(1e3 * (time.process_time() - start) / len(items))
    return median(found)


def stages(images: ImageSet, kept: ImageSet, side: int, bs: int, rounds: int) -> None:
    torch.set_num_threads(1)  # as in a worker
    rows = range(min(len(images), bs))
    paths = [images.paths[row] for row in rows]
    decoded = [read_image(path) for path in paths]
    opened = [open_image(path) for path in paths]
    stored = [kept.open(row) for row in rows]
    size = decoded[0].size

    def open_and_decode(path: Path) -> None:
        Image.open(path).convert("RGB")

    def reduced(by: int) -> Callable[[Path], None]:
        def decode(path: Path) -> None:
            with Image.open(path) as image:
                image.draft("RGB", (size[0] // by, size[1] // by))
                image.load()

        return decode

    print("\n| stage, ms | plain | default | cached |\n|---|---|---|---|")

    def line(name: str, *works: tuple[Callable[[Any], Any], Sequence[Any]] | None) -> None:
        cells = ["" if work is None else f"{milliseconds(*work, rounds):.2f}" for work in works]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    line(
        "open and decode",
        (open_and_decode, paths),
        (lambda path: open_image(path).pixels(), paths),
        (lambda row: kept.open(row).pixels(), rows),
    )
    line("  at an eighth: unpacking the bits", (reduced(8), paths), None, None)
    for training, name in ((True, "random part and flip"), (False, "resize and middle")):
        steps = plain_transform(side, training).transforms  # type: ignore[attr-defined]
        geometry = usual.Compose(steps[:-2])
        ours = our_transform(side, training)

        def cut(picture: Any, ours: CropTransform[Any] = ours) -> Any:
            return ours.crop(picture.pixels(), ours.draw(picture.size))

        whole = [Decoded(picture.pixels().values) for picture in opened]
        line(name, (geometry, decoded), (cut, whole), (cut, stored))
    views = [geometry(image) for image in decoded]
    to_input = usual.Compose(steps[-2:])
    floats = [to_input(view) for view in views]
    ours_cut = [cut(picture) for picture in stored]
    samples = [Sample((view,), 0, 0, None) for view in ours_cut]
    batch = collate(samples)

    def per_image(work: Callable[[], Any]) -> str:
        return f"{milliseconds(lambda _: work(), [0], rounds) / len(views):.2f}"

    print(f"| to a tensor, normalise | {milliseconds(to_input, views, rounds):.2f} | | |")
    together = per_image(lambda: collate(samples))
    print(f"| collate | {per_image(lambda: torch.stack(floats))} | {together} | {together} |")
    finished = per_image(lambda: datasets.finish(batch, MEAN, STD))
    print(f"| normalise on the device, here the CPU | | {finished} | {finished} |")


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
        size = sum(path.stat().st_size for path in kept.reader.folder.iterdir())  # type: ignore
        print(f"the store: {args.images / took:,.0f} images/s to build, {size / 1e6:.0f} MB\n")
        compare(images, kept, args.side, args.bs, args.workers, args.rounds)
        stages(images, kept, args.side, args.bs, args.rounds)


if __name__ == "__main__":
    main()
