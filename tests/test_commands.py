"""Runs every command of README and docs/ on small stand-ins for what it names.

bash expands each line of a ``bash`` block in a folder that has every path the pages name
(``place``). Its ``python`` and ``torchrun`` only note their words, so quotes, variables and globs
are read as a user's shell reads them. The noted command then runs in this process, followed by its
flags in ``SMALL``. A command that is in no table here fails.
"""

import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from PIL import Image

import main
from batchminer import MINERS
from criteria import CRITERIA
from datasets import check, emoji, openclipart
from evaluation import retrieve
from evaluation import words as find_words
from language import check as words_check
from tests.benchmarks import criteria, readme_picture
from tests.datasets import miniature
from tests.runs import ROOT
from tests.test_extending import COMPONENTS
from tests.test_prose import PAGES
from tests.utilities.test_results import leave
from tests.utilities.test_search import FAKE
from utilities.search import __main__ as search
from utilities.search import trials

WORDS = ("--language_model", "words.txt")
NETWORK = ("--arch", "test_resnet_normalize", "--not_pretrained", "--image_size", "32")
RUN = (*NETWORK, "--embed_dim", "16", "--bs", "8", "--kernels", "0", "--no_report", *WORDS)
DRY = ("--dry_run", "--evaluation_language_model", "words.txt")

# Flags that make a command small, by program or module. They come last, so they win.
SMALL = {
    "main.py": (*RUN, *DRY),
    "main.py --evaluate_only": ("--kernels", "0", "--no_report", *DRY),
    "architectures.export": ("--format", "safetensors"),  # tests/architectures has all formats
    "datasets.caption_index": (),
    "datasets.check": (),
    "evaluation.retrieve": (),
    "language.check": ("--arch", "efficientnet_lite0", "--image_size", "32", *WORDS),
    "evaluation.words": ("--kernels", "0", *WORDS),
    "language.neighbours": ("--kernels", "0", *WORDS),
    "utilities.results": (),
    "utilities.search": (),
    "tests.benchmarks.captions": ("--rows", "40"),
    "tests.benchmarks.criteria": (
        *("--small", "--sizes", "8x16", "--classes", "10", "--rounds", "1", "--threads", "1"),
        *("--only", "simclr", "margin", "semihard"),
    ),
    "tests.benchmarks.device": ("--device", "cpu", "--only", "machine"),  # its own test runs all
    "tests.benchmarks.evaluation": ("--sizes", "60x8x5", "--rounds", "1", "--threads", "1"),
    "tests.benchmarks.inputs": (
        *("--images", "8", "--size", "64", "48", "--side", "32", "--bs", "4"),
        *("--workers", "0", "--rounds", "1"),
    ),
    "tests.benchmarks.memory": (
        *("--arch", "test_resnet_frozen_normalize", "--image_size", "32"),
        *("--bs", "8", "--forward_bs", "4"),
    ),
    "tests.benchmarks.neighbours": (
        *("--rows", "300", "--dim", "8", "--texts", "0", "--threads", "1"),
        *("--index", "ivf", "flat", "faiss", "faiss_batch", "faiss_pq", "faiss_flat"),
    ),
    "tests.benchmarks.probe": (
        *("--points", "200", "--dims", "8", "--classes", "5", "--episodes", "10"),
        *("--threads", "1"),
    ),
    "tests.benchmarks.step": (*NETWORK, "--bs", "8", "--rounds", "1"),
}
FEWER = {"--trials": "2"}  # values of flags that cannot come last
STAND_INS = {  # words that are replaced, since what they name would be downloaded
    "minilm": "words.txt",
    "mpnet": "words.txt",
    "efficientnet_lite0": "RUN",  # language.neighbours: a run instead of pretrained weights
    **dict.fromkeys(("food101", "cifar10", "dtd", "flowers"), "digits"),
}
OF_PAIRS = {"simclr", "datasets.caption_index"}  # commands whose NAME holds captions, not classes
RUN_ELSEWHERE = {  # commands that are not run here, and who runs them
    "requirements.sh": ".ci/run",
    "pytest": ".ci/run",
    "autofaiss": "nobody: another package, not installed",
    "evaluation.serve": "tests/evaluation/test_serve.py",
    "utilities.completion": "tests/utilities/test_completion.py",
    "utilities.flags": "tests/test_prose.py",
    "tests.benchmarks.learning_curve_picture": "tests/test_learning_curve.py",
    "tests.benchmarks.readme_picture": "test_the_picture_of_the_readme_is_drawn",
    "tests.benchmarks.small_sets": "tests/test_small_sets.py",
    "tests.benchmarks.words_picture": "tests/test_main_words.py",
}
ASSIGNMENT = re.compile(r"""\w+=(\(.*\)|"[^"]*"|'[^']*'|\S*)$""")


def command_lines(text):
    """Yield the command lines of each ``bash`` block of a page, continued ones joined."""
    for _, block in re.findall(r"^( *)```bash\n(.*?)^\1```", text, re.M | re.S):
        joined = re.sub(r"\\\n *", "", block).splitlines()
        yield [line.strip() for line in joined if shlex.split(line, comments=True)]


def lines():
    """Return each command line once, after the assignments that its block makes before it."""
    found = {}
    for page in PAGES:
        for block in command_lines(page.read_text()):
            assigned = []
            for line in (re.sub(r"\s+#.*", "", line) for line in block):
                if ASSIGNMENT.match(line):
                    assigned.append(line)
                else:
                    found.setdefault("\n".join([*assigned, line]), page.name)
    again = [text for text in found if "architectures.export" in text][1:]
    again += [text for text in found if "tests.benchmarks.memory" in text]
    return [
        pytest.param(
            text,
            id=f"{page}: {text.splitlines()[-1]}",
            marks=[pytest.mark.slow] if text in again else (),  # ten seconds each
        )
        for text, page in found.items()
    ]


# --------------------------------------------------------------------------------------------------
# The stand-ins
# --------------------------------------------------------------------------------------------------
NOTE = """#!/bin/bash
printf '%s\\037' "${0##*/}" "$@" >> "$NOTES"; printf '\\036' >> "$NOTES"
"""
BASH = """#!/bin/bash
case "$1" in
    language_guidance_benchmark_runs.sh) PATH=$USUAL exec /bin/bash "$ROOT/$1" "${@:2}" ;;
    *) printf '%s\\037' "$@" >> "$NOTES"; printf '\\036' >> "$NOTES" ;;
esac
"""
CLASSES = (
    *("ankle boot", "rain boot", "running shoe", "house shoe", "red sandal", "blue sandal"),
    *("high heel", "low heel", "snow shoe", "work boot"),
    *("tall boot", "short boot", "wool shoe", "old sandal", "new sandal", "flat heel"),
    *("soft boot", "hard boot", "silk shoe", "big sandal"),
)
SOUGHT = "red panda fire truck in snow tiger"  # by --words
RESULTS = {  # groups of the benchmark script's runs, three seeds each
    "emoji": (
        *("default", "baseline", "classnames", "pseudolabels", "permuted", "long_baseline"),
        *("long_classnames", "val_baseline", "val_w7.5", "val_w7.5_permuted", "val_w20"),
        *("val_w10_T0.2", "val_w7.5_published", "league_margin", "league_margin_guided"),
        *("quick_none", "quick_words", "quick_permuted"),
    ),
    "openclipart": (
        *(
            "default",
            "untrained",
            "simclr",
            "simclr_language",
            "simclr_random",
            "simclr_language_views",
        ),
        *("simsiam", "simsiam_language", "clip", "slip"),
        *("scratch_simclr", "scratch_language", "pretrained_simclr", "pretrained_language"),
    ),
}
SCORES = {
    "emoji": ("e_recall@1", "mAP@R", "wrong_word_similarity@10", "wrong_group_share@10"),
    "openclipart": ("features/e_recall@1", "features/mAP@R", "linear_probe", "fewshot_5w5s",
                    "knn@20"),
}  # fmt: skip


def labelled(folder, per_class=6):
    """Write twenty classes, each in a group of its own: ten are enough for a map from words."""
    for kind, name in enumerate(CLASSES):
        for number in range(1, per_class + 1):
            file = folder / "images" / name / f"{number:04d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            miniature.picture(kind, number, 48).save(file)
    groups = {name: {"name": name, "group": f"shelf of {name}"} for name in CLASSES}
    (folder / "classes.json").write_text(json.dumps(groups))
    return folder


def captioned(folder):
    """Write 96 pairs: at 8 a batch, two epochs are longer than the recipe's warm-up."""
    (folder / "boots_2020").mkdir(parents=True)
    for number in range(96):
        file = folder / "boots_2020" / f"{number:02d}.jpg"
        miniature.picture(number % 5, number, 48).save(file)
        caption = f"{CLASSES[number % 5]} on a {CLASSES[number % 7]}"
        file.with_suffix(".json").write_text(json.dumps({"caption": caption}))
    return folder


def built(module, folder):
    """Make a folder pass for a built emoji or openclipart."""
    manifest = {**module.measure(folder), "packages": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that has every path the commands name, and the programs that note their words."""
    place = tmp_path_factory.mktemp("place")
    data, results = place / "data", place / "Training_Results"
    for name in ("shop", "shoes", "NAME"):
        labelled(data / name)
    for name in ("redcaps", "PAIRS"):
        captioned(data / name)
    miniature.cub200(data, n_classes=16)  # half of them train, in four folds
    miniature.online_products(data)
    cached = place / "cache" / "language_guided_similarity" / "datasets"
    built(emoji, labelled(cached / "emoji", per_class=24))
    built(openclipart, captioned(cached / "openclipart"))
    shutil.copytree(cached / "emoji", data / "emoji")
    for name in ("PICTURES", "pictures"):
        shutil.copytree(data / "shop" / "images" / CLASSES[0], place / name)
    shutil.copy(data / "shop" / "images" / CLASSES[0] / "0001.jpg", place / "some.jpg")
    texts = [*CLASSES, SOUGHT, "a", "on", *map(str, data.glob("*/images/*"))]
    known = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    rng = np.random.default_rng(0)
    vectors = [f"{word} {' '.join(map(str, rng.normal(size=8)))}\n" for word in sorted(known)]
    (place / "words.txt").write_text("".join(vectors))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        main.main(["--dataset", "shop", "--source_path", "data", "--n_epochs", "1", *RUN])
        run = results / "shop" / "default_s0"
        find_words.main(["--checkpoint", str(run), *SMALL["evaluation.words"]])
        for copy in ("RUN", "runs/shoes/default_s0"):
            shutil.copytree(run, place / copy)
        shutil.copy(run / "last.pt", place / "RUN" / "ema.pt")
        for folder, index in (("PICTURES", "DIR"), ("pictures", "my_index"),
                              ("pictures", "by_words"), ("data/shoes/images", "found"),
        ):  # fmt: skip
            retrieve.main(["index", folder, "--checkpoint", "RUN", "--index", index])
    for dataset, groups in RESULTS.items():
        (results / dataset).mkdir()
        for group in groups:
            for seed in range(3):
                prefix = "test/embeds/" if dataset == "emoji" else "emoji/"
                scores = {prefix + name: rng.uniform() for name in SCORES[dataset]}
                rows = [{"epoch": epoch, **scores} for epoch in (4, 8)]
                leave(results / dataset, group, seed, rows, dataset=dataset)
        shutil.copy(run / "last.pt", results / dataset / "default_s0")
    for name in ("RUN_A", "RUN_B"):
        shutil.copytree(results / "emoji" / "baseline_s0", place / name)

    for name in (".venv/bin/python", ".venv/bin/torchrun", "bin/autofaiss", "bin/bash"):
        program = place / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(BASH if name == "bin/bash" else NOTE)
        program.chmod(0o755)
    return place


@pytest.fixture(autouse=True)
def _denormals_are_kept():
    """Commands flush them, in the whole process."""
    yield
    torch.set_flush_denormal(False)


# --------------------------------------------------------------------------------------------------
# Running
# --------------------------------------------------------------------------------------------------
def noted(text, place):
    """Return the words of each call that bash makes, and what the benchmark script printed."""
    notes = place / "notes"
    notes.write_text("")
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", text],
        cwd=place, capture_output=True, text=True,
        env={"PATH": str(place / "bin"), "USUAL": os.environ["PATH"], "ROOT": str(ROOT),
             "NOTES": str(notes), "DRY_RUN": "1", "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = [call.split("\037")[:-1] for call in notes.read_text().split("\036")[:-1]]
    return calls, done.stdout


def stood_in(words):
    """Return a command's words, replaced where they name what this folder does not have."""
    if OF_PAIRS & {*words}:
        words = [word.replace("NAME", "PAIRS") for word in words]
    pairs = zip(["", *words], words, strict=False)
    return [FEWER.get(before, STAND_INS.get(word, word)) for before, word in pairs]


def small(name, words):
    """Return the words after a program or module, followed by those that make it small."""
    if name == "main.py" and "--evaluate_only" in words:
        name += " --evaluate_only"
    assert name in SMALL, f"no test runs {name}: give it a line in SMALL of {__file__}"
    more = SMALL[name]
    if "--weights" in words:
        more = [word for word in more if word != "--not_pretrained"]
    return [*words, *more]


def entry(module):
    """Return the main function of a module, or of a package's ``__main__``."""
    found = importlib.import_module(module)
    return getattr(found, "main", None) or importlib.import_module(f"{module}.__main__").main


def run(program, words, place):
    """Run a command that bash noted."""
    if program in RUN_ELSEWHERE or (words[0] == "-m" and words[1] in RUN_ELSEWHERE):
        return
    words = stood_in(words)
    if program == "torchrun":  # tests/test_main_ranks.py runs it
        assert words[0] == "--nproc_per_node"
        words = words[2:]
    if words[0] == "main.py":
        scores = main.main(small("main.py", words[1:]))
        assert scores and all(np.isfinite(value) for value in scores.values())
    elif words[1] == "utilities.search":
        (place / "fake.py").write_text(FAKE)  # tests/utilities/test_search.py searches main.py
        search.main(small(words[1], words[2:]), [sys.executable, str(place / "fake.py")])
    else:
        assert words[0] == "-m"
        more = small(words[1], words[2:])
        assert not entry(words[1])(more)  # no exit status


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("text", lines())
def test_a_command_of_the_pages_runs(text, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setattr(check, "PUBLISHED", {})  # the counts of whole datasets
    for module in (emoji, openclipart):
        monkeypatch.setattr(module, "_build", None)  # from the network
    monkeypatch.setattr(trials, "POLL", 0.02)
    monkeypatch.setattr(words_check, "CLASSIFIED", 5)  # at 224 px
    calls, printed = noted(text, place)
    assert calls or "main.py --resume" in printed
    for program, *words in calls:
        run(program, words, place)


def test_a_command_that_nobody_knows_fails(place):
    with pytest.raises(AssertionError, match="command not found"):
        noted("cargo build", place)
    with pytest.raises(AssertionError, match=r"no test runs datasets\.recipes"):
        run("python", ["-m", "datasets.recipes"], place)
    [[program, *words]], _ = noted("A=(x 'y z')\n.venv/bin/python \"${A[@]}\" data/sh*  # c", place)
    assert (program, words) == ("python", ["x", "y z", "data/shoes", "data/shop"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_where_they_are_run(page):
    """In ``bash`` blocks. tests/test_extending.py runs the ``bash example`` of each component.

    Modules that the text names are in the tables, too.
    """
    text = page.read_text()
    kinds = re.findall(r"^ *```(\w[^\n]*)$", text, re.M)
    assert not {"sh", "shell", "console"} & {*kinds}
    examples = [kind for kind in kinds if kind.startswith("bash ")]
    assert examples == ["bash example"] * len(COMPONENTS if page.name == "extending.md" else ())
    assert {*re.findall(r"python -m ([\w.]+)", text)} <= {*SMALL, *RUN_ELSEWHERE}


# --------------------------------------------------------------------------------------------------
# Benchmarks
# --------------------------------------------------------------------------------------------------
BENCHMARKS = [
    f"tests.benchmarks.{path.stem}"
    for path in sorted((ROOT / "tests" / "benchmarks").glob("*.py"))
    if "ArgumentParser" in path.read_text() and f"tests.benchmarks.{path.stem}" not in RUN_ELSEWHERE
]


def in_this_process(command, **_):
    """Stand in for ``subprocess.run`` of ``python -m``."""
    printed = io.StringIO()
    assert command[:2] == [sys.executable, "-m"]
    with redirect_stdout(printed):
        entry(command[2])(command[3:])
    return subprocess.CompletedProcess(command, 0, printed.getvalue())


@pytest.mark.parametrize(
    "module",
    [pytest.param(m, marks=[pytest.mark.slow] if m.endswith("memory") else ()) for m in BENCHMARKS],
)
def test_a_benchmark_runs(module, tmp_path, monkeypatch, capsys):
    """With all contestants, which run in processes of their own otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", in_this_process)
    every = ["--only", *CRITERIA, *MINERS, "xbm"] if module.endswith("criteria") else []
    entry(module)([*small(module, []), *every])
    printed = capsys.readouterr().out
    assert any(unit in printed for unit in (" ms", " s", " GiB"))
    assert not every or all(f" {name} " in printed for name in (*CRITERIA, *MINERS))


@pytest.mark.slow
def test_the_picture_of_the_readme_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    readme_picture.main(["--n_epochs", "1", "--out", str(tmp_path / "picture.png")])
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 4 * picture.height


@pytest.mark.parametrize("name", ["simclr", "vicreg", "clip"])
def test_theirs_is_the_same_objective(name):
    """The loss timed beside ours has the same value on the same features and heads."""
    bench = criteria.Bench(criteria.Size(8, 16, 10, small=True), torch.device("cpu"), rounds=1)
    ours = criteria.build_criterion(name, bench.size, MINERS["distance"].load()())
    views, batch, _ = bench.embedded(ours)
    found = []
    for objective in (ours.compute, criteria.pml_objective(ours)[0]):
        torch.manual_seed(0)  # of the ids of captions
        found.append(objective(views, batch).item())
    assert found[1] == pytest.approx(found[0], rel=1e-5)
