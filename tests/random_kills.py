"""Kills runs of many configurations by SIGKILL at random moments and resumes them.

    python -m tests.random_kills FOLDER [--kills 5] [--seed 0] [--only NAME...]

Each configuration runs once undisturbed and once killed ``--kills`` times, wherever the moment
falls: in preparing data, in a step, while a file is written. Both must end equal, bit for bit.
Prints a line per configuration; the exit status is 1 if any of them differs.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from tests import crash_resume
from tests.runs import assert_same_run, tiny_run, write_animals
from tests.test_main_captions import flags as caption_flags
from tests.test_main_captions import texts_of, write_source

OFTEN = ("--resume", "--checkpoint_every", "2")
LABELLED = {
    "multisimilarity_guided": "--language_distill_w 2 --language_delay 4 --store_improvements",
    "language_proxy": "--language_proxy_w 0.3 --language_delay 4",
    "report": "--language_distill_w 2",
    "margin_distance_xbm": "--loss margin --batch_mining distance --xbm_size 16 --xbm_start 2",
    "parametric": "--loss margin --batch_mining parametric --bs 4 --use_tv_split"
    " --tv_split_perc 0.5",
    "patience": "--patience 1 --ema 0.9 --evaluations retrieval knn --bs 4 --use_tv_split"
    " --tv_split_perc 0.5 --n_epochs 6",
    "s2sd_sgd": "--loss s2sd --loss_s2sd_target_dims 12 --scheduler cosine --optim sgd",
    "proxynca_pp_cached": "--loss proxynca_pp --cache_images",
    "workers": "--data_sampler fid_batchmatch --data_batchmatch_bigbs 16 --kernels 2",
    "knn_only": "--evaluations knn",
    "probe_and_fewshot": "--evaluations retrieval linear_probe fewshot",
    "bf16_warmup": "--precision bf16 --scheduler warmup_cosine --warmup_steps 2",
    "byol": "--loss byol --loss_byol_hidden_dim 8 --loss_byol_proj_dim 6",
}
CAPTIONED = {
    "simclr_pairs": "--loss simclr --data_sampler language_pairs",
    "simclr_pairs_cached": "--loss simclr --data_sampler language_pairs --cache_images",
    "clip": "--loss clip",
    "slip": "--loss slip",
    "lgslip": "--loss lgslip --data_sampler language_pairs --loss_clip_text frozen",
    "declip_nns": "--loss declip_nns --loss_clip_text frozen",
    "swav": "--loss swav",
    "captions_guided": "--loss nnclr --language_distill_w 2",
    "captions_knn": "--loss simclr --evaluations knn",
}


def prepare(folder):
    """Write the images; return the words of each configuration but --save_path, by name."""
    labelled, captioned = folder / "labelled", folder / "captioned"
    if not labelled.is_dir():
        write_animals(labelled)
        captioned.mkdir()
        write_source(captioned)
    commands = {}
    for name, words in LABELLED.items():
        more = (*OFTEN, "--n_epochs", "4", "--evaluate_every", "2", *words.split())
        commands[name] = tiny_run(labelled, "PLACE", *more, report=name == "report")
    for name, words in CAPTIONED.items():
        text = () if "frozen" in words else texts_of(captioned, words.split()[1])
        more = (*OFTEN, *words.split(), *text)
        commands[name] = caption_flags(captioned, "PLACE", *more, length=("--max_steps", "9"))
    return commands


def killed(words, place, after):
    """Kill a run after some seconds, unless it ended before; return whether it was killed."""
    status = crash_resume.run(words, place, after=after)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise AssertionError(f"a run failed after {after:.2f} s")
    return False


def try_one(name, words, folder, n_kills, rng):
    """Return the number of kills; AssertionError if the runs differ."""
    whole, parts = folder / name / "whole", folder / name / "parts"
    for place in (whole, parts):
        place.mkdir(parents=True)
    begin = time.monotonic()
    if crash_resume.run([str(whole) if word == "PLACE" else word for word in words], whole):
        raise AssertionError("the undisturbed run failed")
    length = time.monotonic() - begin
    words = [str(parts) if word == "PLACE" else word for word in words]
    n = 0
    for _ in range(8 * n_kills):  # a run that ends before its moment counts for nothing
        if n == n_kills:
            break
        if not killed(words, parts, length * rng.uniform(0.05, 0.9)):
            length *= 0.9
            shutil.rmtree(parts)
            parts.mkdir()
            n = 0
        else:
            n += 1
    if crash_resume.run(words, parts):
        raise AssertionError("the run could not be resumed")
    [one], [other] = ([*place.glob("*/default_s0")] for place in (whole, parts))
    assert_same_run(other, one)
    return n


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=5, help="kills of each run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--only", nargs="+", help="names of configurations")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    total, failed = 0, []
    for name, words in prepare(args.folder.resolve()).items():
        if args.only and name not in args.only:
            continue
        try:
            n = try_one(name, words, args.folder.resolve(), args.kills, rng)
        except AssertionError as error:
            failed.append(name)
            print(f"{name}: {error}", flush=True)
        else:
            total += n
            print(f"{name}: killed {n} times, equal", flush=True)
    print(f"{total} kills resumed, {len(failed)} configurations failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
