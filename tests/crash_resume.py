"""Kills runs of main.py by SIGKILL at named moments and resumes them.

    python -m tests.crash_resume SOURCE FOLDER FLAG...

Imports main.py once and forks: runs that nothing happens to, and for each of MOMENTS one that is
killed there and one that resumes it, each on a copy of SOURCE and with its own cache, so that the
data are prepared anew. Leaves ``FOLDER/<moment>`` and, to compare it with,
``FOLDER/<whole(moment)>``. Fails if a moment never comes or a run ends badly. Nothing of torch runs
before the forks, so that there are no threads to lose.
"""

import io
import os
import shutil
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

import main
import utilities.trainer  # noqa: F401 - imported once, before the forks
from utilities import plots


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number, then=die):
    """Return what replaces a function: call number ``number`` does ``then``, others pass."""

    def replace(function):
        calls = iter(range(1, number))

        def replaced(*inputs, **named):
            return (then if next(calls, None) is None else function)(*inputs, **named)

        return replaced

    return replace


def half_a_checkpoint(parts, file):
    whole = io.BytesIO()
    torch_save(parts, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    die()


def half_a_row(folder, epoch, scores):
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(f'{{"epoch": {epoch}, "test/emb')
    die()


torch_save = import_module("torch").save
MOMENTS = {  # what is replaced, and by what
    "images_are_checked": ("datasets.readable:fault", at_call(20)),
    "images_are_cached": ("datasets.image_cache:_Shrunk.__getitem__", at_call(30)),
    "a_cache_gets_its_index": ("utilities.disk_cache:seal", at_call(2)),
    "words_are_written": ("language.cache:CachedEncoder._write", at_call(1)),
    "the_folder_is_new": ("utilities.run_folder:RunFolder.write_config", at_call(1)),
    "before_training_is_recorded": ("utilities.run:Run.record_untrained", at_call(1)),
    "a_step": ("utilities.trainer:Trainer.step", at_call(5)),
    "a_checkpoint_is_written": ("torch:save", at_call(5, half_a_checkpoint)),
    "an_epoch_is_evaluated": ("evaluation.retrieval:score", at_call(3)),
    "a_row_is_written": ("utilities.run_folder:RunFolder.record", at_call(3, half_a_row)),
    "curves_are_drawn": ("utilities.plots:learning_curves", at_call(1)),
    "the_report_is_written": ("evaluation.session:write_report", at_call(1)),
    "all_is_written": ("utilities.run:Run.finish", at_call(1)),
}
REPORTED = ("the_report_is_written", "all_is_written")  # it takes half of such a small run's time


def whole(moment):
    """Return the name of the uninterrupted run that the one killed at ``moment`` must equal."""
    return "reported" if moment in REPORTED else "unreported"


def run(flags, place, moment=None, after=None):
    """Run main.py in a child; return its wait status. It is killed ``after`` some seconds."""
    child = os.fork()
    if child:
        ended = after is None
        deadline = time.monotonic() + (after or 0)
        while not ended and time.monotonic() < deadline:
            time.sleep(0.002)
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if not ended:
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")
        plots.learning_curves = lambda rows, path: path.touch()  # drawing takes most of a run
        if moment:
            where, replace = MOMENTS[moment]
            module, _, name = where.partition(":")
            owner = import_module(module)
            *inner, name = name.split(".")
            for step in inner:
                owner = getattr(owner, step)
            setattr(owner, name, replace(getattr(owner, name)))
        main.main(flags)
        code = 0
    except SystemExit as end:  # as of a run that is finished
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def try_all(source, folder, flags):
    more = {
        name: flags if whole(name) == "reported" else [*flags, "--no_report"] for name in MOMENTS
    }
    for name in (*map(whole, MOMENTS), *MOMENTS):
        checked = shutil.ignore_patterns(".*")  # what an earlier run found of the images
        shutil.copytree(source, folder / name / "source", ignore=checked, dirs_exist_ok=True)

    def words(name, moment):
        place = folder / name
        return [*more[moment], "--source_path", str(place / "source"), "--save_path", str(place)]

    for name, moment in {whole(moment): moment for moment in MOMENTS}.items():
        if run(words(name, moment), folder / name):
            sys.exit("an uninterrupted run failed")
    for moment in MOMENTS:
        print(f"---- {moment}", file=sys.stderr, flush=True)
        status = run(words(moment, moment), folder / moment, moment)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{moment} did not come, or the run failed before it")
        if run(words(moment, moment), folder / moment):
            sys.exit(f"the run that was killed at {moment} could not be resumed")


if __name__ == "__main__":
    try_all(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
