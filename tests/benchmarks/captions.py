"""Measures how long the index of a caption set takes, and the memory of an open one.

    python -m tests.benchmarks.captions --rows 100000

Two synthetic sets of N pairs are made: files (`<directory>/<id>.jpg` beside `<id>.json`, 4,000
pairs in each directory; the images are hard links to a few, so that making them is quick) and
shards (10,000 pairs in each, with .jpg, .json and .txt). Each measurement runs in a process of its
own. The files were just written, so they are in the system's cache: a cold disk adds its own time
to the first build only. "Shared" memory is the pages of the index, which the system takes back when
it needs them; "own" is what a worker adds.
"""

import argparse
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets import caption_index
from datasets.caption_set import CaptionSet
from tests.benchmarks.machine import processor

WORDS = np.array(
    (
        *("a", "the", "of", "in", "on", "red", "blue", "small", "old", "dog", "cat", "bird"),
        *("house", "tree", "river", "boat", "cup", "book", "under", "near", "bright", "quiet"),
        *("morning", "evening", "flower", "street", "garden", "child", "hat", "stone", "bread"),
    )
)


def material(rows: int) -> tuple[list[bytes], list[str]]:
    """Sixteen tiny JPEG files, and a caption of eleven words for each row, as RedCaps has."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(16):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "JPEG")
        files.append(file.getvalue())
    return files, [" ".join(words) for words in WORDS[rng.integers(0, len(WORDS), (rows, 11))]]


def make_files(root: Path, rows: int, per_directory: int = 4000) -> None:
    images, texts = material(rows)
    for row, caption in enumerate(texts):
        folder = root / f"subreddit_2018_{row // per_directory}"
        if row % per_directory == 0:
            folder.mkdir(parents=True)
        source = root.with_name(f"source{row % 16}.{row // 50_000}.jpg")  # 65,000 links at most
        if not source.exists():
            source.write_bytes(images[row % 16])
        os.link(source, folder / f"{row:08d}.jpg")
        (folder / f"{row:08d}.json").write_text(json.dumps({"caption": caption}))


def make_shards(root: Path, rows: int, per_shard: int = 10_000) -> None:
    images, texts = material(rows)
    root.mkdir()
    for first in range(0, rows, per_shard):
        with tarfile.open(root / f"{first // per_shard:05d}.tar", "w") as tar:
            for row in range(first, min(first + per_shard, rows)):
                text = texts[row]
                for suffix, content in (
                    ("jpg", images[row % 16]),
                    ("json", json.dumps({"caption": text}).encode()),
                    ("txt", text.encode()),
                ):
                    member = tarfile.TarInfo(f"{row:09d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def memory() -> dict[str, float]:
    """MB of this process: its own, and what it shares with files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines if "kB" in line}
    return {"own": sizes["RssAnon"], "shared": sizes["RssFile"], "peak": sizes["VmHWM"]}


def measure(step: str, root: Path) -> dict[str, Any]:
    """Make one measurement, in a process that does nothing else."""
    before = memory()

    def grown() -> list[float]:
        return [memory()[kind] - before[kind] for kind in ("own", "shared")]

    def seconds(call: Any) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    if step != "open":
        start = time.perf_counter()
        index = caption_index.build(root, recheck=step == "recheck")
        took = time.perf_counter() - start
        peak = memory()["peak"] - before["own"] - before["shared"]
        return {"seconds": took, "peak": peak, "megabytes": index.stat().st_size / 1e6}
    start = time.perf_counter()
    pairs = CaptionSet(root, root / "index.arrow")
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "opened": grown()}
    rows = np.random.default_rng(1).integers(0, len(pairs), 1000).tolist()
    found["caption"] = seconds(lambda: [pairs.caption(row) for row in rows]) / len(rows)
    found["touched"] = grown()
    found["read"] = seconds(lambda: [pairs.read(row) for row in rows]) / len(rows)
    found["all"] = seconds(lambda: sum(1 for _ in pairs.captions))
    return found | {"rows": len(pairs)}


def alone(step: str, root: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.captions", "--step", step]
    command += ["--root", str(root)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def add_one(root: Path) -> None:
    """Add a pair to the last directory, or a shard of one pair."""
    if (root / "00000.tar").exists():
        make_shards(root.with_name("one"), 1)
        (root.with_name("one") / "00000.tar").rename(root / "one.tar")
        return
    folder = sorted(path for path in root.iterdir() if path.is_dir())[-1]
    shutil.copyfile(next(folder.glob("*.jpg")), folder / "one.jpg")
    (folder / "one.txt").write_text("one more")


def report(root: Path, rows: int) -> None:
    time.sleep(caption_index.SETTLED)  # a set that was just changed is waited for
    first, again, rechecked = (alone(step, root) for step in ("build", "build", "recheck"))
    add_one(root)
    time.sleep(caption_index.SETTLED)
    grown = alone("build", root)
    opened = alone("open", root)
    assert opened["rows"] == rows + 1
    own, shared = opened["opened"]
    touched_own, touched_shared = opened["touched"]
    for name, value in (
        ("first build", f"{first['seconds']:.1f} s, {rows / first['seconds']:,.0f} rows/s"),
        ("  peak memory", f"+{first['peak']:.0f} MB"),
        ("  size of the index", f"{first['megabytes']:.1f} MB"),
        ("build again, nothing changed", f"{1e3 * again['seconds']:.1f} ms"),
        ("build again, one pair added", f"{grown['seconds']:.2f} s"),
        ("build again, every file checked", f"{rechecked['seconds']:.1f} s"),
        ("open", f"{1e3 * opened['seconds']:.1f} ms, own +{own:.1f} MB, shared +{shared:.1f} MB"),
        (
            "after 1,000 captions at random",
            f"own +{touched_own:.1f} MB, shared +{touched_shared:.1f} MB",
        ),
        ("a caption", f"{1e6 * opened['caption']:.0f} µs"),
        ("an image, decoded", f"{1e6 * opened['read']:.0f} µs"),
        ("all captions in order", f"{opened['all']:.2f} s"),
    ):
        print(f"| {root.name} | {name} | {value} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the sets are made (a temporary one)")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.step:
        logging.basicConfig(level=logging.WARNING)
        print(json.dumps(measure(args.step, args.root)))
        return
    print(f"{args.rows:,} pairs; {processor()}, {os.cpu_count()} cores")
    print("| layout | | |\n|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for make in (make_files, make_shards):
            root = Path(name) / make.__name__.removeprefix("make_")
            make(root, args.rows)
            report(root, args.rows)
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
