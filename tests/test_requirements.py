"""requirements.sh picks packages for the driver, repairs a .venv, and checks the disk first.

It runs in a folder of its own, with stand-ins for Python, nvidia-smi and df and without a network.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("awk", "bash", "df", "dirname", "grep", "head", "rm", "sed", "sort", "wc")

PYTHON = f"""#!{sys.executable} -SE
# Stands in for Python VERSION: makes a .venv of copies of itself and notes what pip installs.
import os, pathlib, shutil, sys

words, own = sys.argv[1:], pathlib.Path(sys.argv[0])
ensurepip = "NO_ENSUREPIP" not in os.environ
packages = own.parents[1] / "lib" / "pythonVERSION" / "site-packages"


def add(name, into=packages):
    (into / (name + ".dist-info")).mkdir(parents=True, exist_ok=True)
    (into / (name + ".dist-info") / "INSTALLER").touch()


if words[0] == "-c" and "ensurepip" in words[1]:
    sys.exit(not ensurepip)
elif words[0] == "-c":
    print("VERSION")
elif words[:3] == ["-m", "venv", "--clear"]:
    venv = pathlib.Path.cwd() / words[3]
    if venv.exists():
        shutil.rmtree(venv)
    (venv / "bin").mkdir(parents=True)
    shutil.copy(own, venv / "bin" / "python")
    (venv / "bin" / "pip").write_text("#!%s/bin/python\\n" % venv)
    (venv / "pyvenv.cfg").write_text("command = python3 -m venv --clear %s\\n" % venv)
    add("pip-26", venv / "lib" / "pythonVERSION" / "site-packages")
elif words == ["-m", "ensurepip"]:
    if ensurepip:
        add("pip-26")
    sys.exit(not ensurepip)
elif words[:2] == ["-m", "pip"] and not (packages / "pip-26.dist-info").exists():
    sys.exit("No module named pip")
elif words[2:] == ["cache", "dir"]:
    print(os.environ["CACHE"])
elif words[2:3] == ["install"]:
    for pin in words[5:]:
        pin, _, marker = pin.partition("; ")
        if not marker or eval(marker, {{"python_version": "VERSION"}}):
            add(pin.replace("-", "_").replace("==", "-"))
            print(pin, file=open("installed", "a"))
elif words[2:3] == ["uninstall"]:
    for name in words[5:]:
        for found in packages.glob(name.replace("-", "_") + "-*"):
            shutil.rmtree(found)
            print("removed", name, file=open("installed", "a"))
elif words == ["-"]:
    os.execv({sys.executable!r}, [{sys.executable!r}, "-S", "-"])
"""

TORCH = """
import os

__version__ = "2.14.1+cu130"


def zeros(*shape, device):
    if "GPU" not in os.environ:
        raise RuntimeError("The NVIDIA driver on your system is too old.\\nPlease update it.")
    import torch
    return torch


add = lambda one: zeros(device="cuda")
item = lambda: 1.0


class cuda:
    get_device_name = lambda: os.environ["GPU"]
"""


def header(driver, cuda):
    """Return what nvidia-smi prints first."""
    return f"""Mon Jan  5 10:00:00 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI {driver:<15}    Driver Version: {driver:<15}  CUDA Version: {cuda:<10} |
|-----------------------------------------+------------------------+----------------------+
"""


def nvidia_smi(header, capability="8.0"):
    """Return a script that prints ``header``; one too old to report a capability of None."""
    answer = "exit 2" if capability is None else f"echo '{capability}'"
    return (
        f'case "$*" in *compute_cap*) {answer}; exit ;; esac\n'
        f"while read -r line; do echo \"$line\"; done <<'END'\n{header}\nEND"
    )


OLD, NEW = header("550.54.15", "12.4"), header("580.65.06", "13.0")
UMD_HEADER = """
| NVIDIA-SMI 595.45.04              KMD Version: 595.45.04     CUDA UMD Version: 13.0     |
"""


class Machine:
    """A folder with a copy of requirements.sh, and the only commands that it finds."""

    def __init__(self, folder):
        self.folder = folder / "project"
        self.bin = folder / "bin"
        self.tmp = folder / "tmp"
        self.cache = folder / "home" / "cache"
        for path in (self.folder, self.bin, self.tmp):
            path.mkdir()
        shutil.copy(ROOT / "requirements.sh", self.folder)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.python("python3", "3.13")
        self.command("df", "echo; echo /dev/disk 9 9 99000000 1% /")
        stubs = folder / "stubs"
        stubs.mkdir()
        for name in ("faiss", "timm", "torchvision", "transformers"):
            (stubs / f"{name}.py").touch()
        (stubs / "torch.py").write_text(TORCH)
        self.environment = {
            "PATH": str(self.bin), "TMPDIR": str(self.tmp), "CACHE": str(self.cache),
            "PYTHONPATH": str(stubs),
        }  # fmt: skip

    def command(self, name, script):
        self.write(self.bin / name, f"#!/bin/sh\n{script}\n")

    def python(self, name, version):
        self.write(self.bin / name, PYTHON.replace("VERSION", version))

    @staticmethod
    def write(path, text):
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def driver(self, header, capability="8.0"):
        self.command("nvidia-smi", nvidia_smi(header, capability))

    def run(self, *words, **environment):
        return subprocess.run(
            [self.bin / "bash", "requirements.sh", *words],
            cwd=self.folder, env=self.environment | environment, capture_output=True, text=True,
        )  # fmt: skip

    def succeed(self, *words, **environment):
        """Run it; return its messages without its name, one per line."""
        done = self.run(*words, **environment)
        assert done.returncode == 0, done.stderr
        return (done.stderr + done.stdout).replace("requirements.sh: ", "")

    def refuse(self, *words, status=1, **environment):
        """Run it where it should fail before anything is installed; return its last line."""
        done = self.run(*words, **environment)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == status and last.startswith("requirements.sh: "), done.stderr
        assert not done.stdout and not self.installed()
        return last

    def installed(self):
        """Return what pip installed and removed, in order."""
        notes = self.folder / "installed"
        return notes.read_text().splitlines() if notes.exists() else []

    def builds(self):
        """Return the installed pins that depend on the driver."""
        return [pin for pin in self.installed() if pin.startswith(("torch", "faiss"))]

    def packages(self):
        return next((self.folder / ".venv" / "lib").glob("python*/site-packages"))


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


CPU = ["torch==2.14.1", "torchvision==0.29.1", "faiss-cpu==1.15.1"]
CUDA_13 = ["torch==2.14.1", "torchvision==0.29.1", "faiss-gpu-cu12==1.14.1.post1"]
CUDA_12 = ["torch==2.10.0", "torchvision==0.25.0", "faiss-gpu-cu12==1.14.1.post1"]


NO_VERSION = "nvidia-smi names no driver version ({}): installing for the CPU"
DRIVERS = [  # script of nvidia-smi, builds, beginning of the messages
    (nvidia_smi(header("525.60.13", "12.0")), CUDA_12, "NVIDIA driver 525.60.13, CUDA 12.0: "),
    (nvidia_smi(OLD), CUDA_12, "NVIDIA driver 550.54.15, CUDA 12.4: installing for CUDA 12\n"),
    (nvidia_smi(NEW), CUDA_13, "NVIDIA driver 580.65.06, CUDA 13.0: installing for CUDA 13\n"),
    (nvidia_smi(header("700.10", "14.2")), CUDA_13, "NVIDIA driver 700.10, CUDA 14.2: "),
    (nvidia_smi(UMD_HEADER), CUDA_13, "NVIDIA driver 595.45.04, CUDA 13.0: "),
    (nvidia_smi(header("535.104.05", "N/A")), CUDA_12, "NVIDIA driver 535.104.05: "),
    (nvidia_smi(header("580.65.06", "N/A")), CUDA_13, "NVIDIA driver 580.65.06: "),
    (nvidia_smi("CUDA Version: 12.4"), CUDA_12, "NVIDIA driver of unknown version, CUDA 12.4: "),
    # Volta has no kernels in the builds for CUDA 13, though its last driver is one for CUDA 13.
    (nvidia_smi(NEW, "7.0"), CUDA_12, "NVIDIA driver 580.65.06"),
    (nvidia_smi(NEW, "7.5"), CUDA_13, "NVIDIA driver 580.65.06"),
    (nvidia_smi(NEW, "6.1\n8.6"), CUDA_13, "NVIDIA driver 580.65.06"),
    (nvidia_smi(NEW, "8.0\n10.0"), CUDA_13, "NVIDIA driver 580.65.06"),
    (nvidia_smi(NEW, ""), CUDA_13, "NVIDIA driver 580.65.06"),
    (nvidia_smi(NEW, None), CUDA_13, "NVIDIA driver 580.65.06"),
    ("echo 'NVIDIA-SMI has failed: none.'; exit 9", CPU,
     NO_VERSION.format("NVIDIA-SMI has failed: none.")),
    ("echo 'No devices were found'", CPU, NO_VERSION.format("No devices were found")),
    ("echo '| CUDA Version: 12.4 |'; exit 15", CPU, NO_VERSION.format("| CUDA Version: 12.4 |")),
]  # fmt: skip


@pytest.mark.parametrize(("script", "builds", "says"), DRIVERS)
def test_the_driver_decides_the_builds(machine, script, builds, says):
    machine.command("nvidia-smi", script)
    messages = machine.succeed(GPU="NVIDIA H200")
    assert machine.builds() == builds and messages.startswith(says)
    assert messages.endswith("ready, torch 2.14.1+cu130 on NVIDIA H200\n")
    first = messages.splitlines()[0]
    assert ("--cuda 12" in first and "--cuda 13" in first) == (builds is CPU)


@pytest.mark.parametrize(
    ("driver", "cuda"), [("470.256.02", "11.4"), ("520.61.05", "11.8"), ("510.47.03", "N/A")]
)
def test_a_driver_too_old_for_torch_is_refused_unless_the_cpu_is_chosen(machine, driver, cuda):
    machine.driver(header(driver, cuda))
    message = machine.refuse()
    assert f"driver {driver}" in message and "needs driver 525 or newer (CUDA 12)" in message
    assert message.endswith("or use the CPU with --cuda none")
    assert not (machine.folder / ".venv").exists()
    machine.succeed("--cuda", "none")
    assert machine.builds() == CPU


def test_without_a_driver_the_cpu_is_used(machine):
    messages = machine.succeed()
    assert "no NVIDIA driver found" in messages and machine.builds() == CPU
    assert messages.endswith("ready, torch 2.14.1+cu130 on CPU\n")


def test_a_gpu_without_kernels_in_any_build_is_refused(machine):
    machine.driver(NEW, "6.1")
    assert "compute capability 6.1) is too old: torch needs 7.0" in machine.refuse()


@pytest.mark.parametrize(("cuda", "builds"), [("12", CUDA_12), ("13", CUDA_13), ("none", CPU)])
def test_cuda_overrides_the_driver(machine, cuda, builds):
    machine.command("nvidia-smi", f"touch {machine.tmp}/called; exit 1")
    machine.succeed("--cuda", cuda)
    assert machine.builds() == builds and not (machine.tmp / "called").exists()


def test_python_3_14_searches_on_the_cpu(machine):
    """No build of FAISS for GPUs exists for it."""
    machine.python("python3", "3.14")
    machine.driver(NEW)
    machine.succeed(GPU="a GPU")
    assert machine.builds() == CPU


def test_two_builds_of_faiss_never_stay_together(machine):
    machine.succeed()
    before = len(machine.installed())
    machine.driver(OLD)
    machine.succeed(GPU="a GPU")
    after = machine.installed()[before:]
    assert [path.name for path in machine.packages().glob("faiss*")] == [
        "faiss_gpu_cu12-1.14.1.post1.dist-info"
    ]
    removed = max(i for i, note in enumerate(after) if note.startswith("removed"))
    assert "faiss-gpu-cu12==1.14.1.post1" in after[removed:]


def test_a_gpu_that_torch_cannot_use_is_reported(machine):
    machine.driver(OLD)
    messages = machine.succeed()
    assert "ready, torch 2.14.1+cu130 on CPU\n" in messages
    assert (
        "torch cannot use the GPU, so main.py would run on the CPU: The NVIDIA driver on your "
        "system is too old. (NVIDIA driver 550.54.15, CUDA 12.4)\n"
    ) in messages
    assert "cannot use" not in machine.succeed("--cuda", "none")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--cuda 11", "--cuda must be 13, 12 or none; got 11"),
        ("--cuda", "--cuda must be 13, 12 or none; got nothing"),
        ("--tests", "unknown option --tests; the options are --demo, --dev, --cuda and --print"),
    ],
)
def test_unknown_options_are_refused(machine, words, says):
    assert machine.refuse(*words.split(), status=2) == f"requirements.sh: {says}"


def test_print_lists_the_pins_and_installs_nothing(machine):
    usual, demo, dev = (
        machine.run(*words, "--print").stdout.splitlines()
        for words in ((), ("--demo",), ("--dev",))
    )
    assert demo[:-1] == usual and demo[-1].startswith("gradio==") and "gradio" not in str(usual)
    assert dev[: len(demo)] == demo and "pytest" not in str(demo)
    assert {pin.split("==")[0] for pin in dev[len(demo) :]} >= {"pytest", "ruff", "mypy"}
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", pin) for pin in dev)
    assert not (machine.folder / ".venv").exists()
    machine.succeed("--demo")
    assert machine.installed() == demo
    machine.succeed("--dev")
    assert machine.installed() == demo + dev


def test_a_supported_python_is_searched_for(machine):
    machine.python("python3", "3.10")
    assert "needs Python 3.11 to 3.14, found 3.10; set PYTHON" in machine.refuse()
    assert "found 3.10" in machine.refuse(PYTHON="python3")
    assert "found none" in machine.refuse(PYTHON="python4")
    machine.python("python3.12", "3.12")
    machine.succeed()
    assert machine.packages().parent.name == "python3.12"


def test_a_python_without_ensurepip_names_the_package_to_install(machine):
    message = machine.refuse(NO_ENSUREPIP="1")
    assert message.endswith("on Debian or Ubuntu run: apt install python3.13-venv")
    assert not (machine.folder / ".venv").exists()


def test_a_second_call_keeps_the_environment(machine):
    machine.succeed()
    pins = machine.installed()
    (machine.folder / ".venv" / "own").touch()
    messages = machine.succeed(NO_ENSUREPIP="1")
    assert "rebuilding" not in messages
    assert (machine.folder / ".venv" / "own").exists() and machine.installed() == pins * 2


def test_a_venv_without_pip_is_repaired(machine):
    """As a call leaves it that was interrupted, or that had no ensurepip."""
    machine.succeed()
    shutil.rmtree(machine.packages() / "pip-26.dist-info")
    (machine.folder / "installed").unlink()
    (machine.folder / ".venv" / "own").touch()
    assert "apt install python3.13-venv" in machine.refuse(NO_ENSUREPIP="1")
    assert "rebuilding" not in machine.succeed()
    assert (machine.folder / ".venv" / "own").exists() and machine.builds() == CPU


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("ln -sf /nowhere/python3.13 .venv/bin/python", "its Python does not start"),
        ("rm -r .venv; mkdir .venv", "its Python does not start"),
        ("rm .venv/pyvenv.cfg", "its Python does not start"),
        (r"sed -i s/3\.13/3.10/g .venv/bin/python", "it has Python 3.10"),
    ],
)
def test_a_venv_that_cannot_be_used_is_rebuilt(machine, damage, says):
    machine.succeed()
    (machine.folder / "installed").unlink()
    subprocess.run(damage, shell=True, cwd=machine.folder, check=True)
    assert f"rebuilding .venv: {says}\n" in machine.succeed()
    assert machine.builds() == CPU
    assert "rebuilding" not in machine.succeed()


def test_a_venv_has_the_python_that_was_asked_for(machine):
    machine.python("python3.12", "3.12")
    machine.succeed(PYTHON="python3.12")
    machine.succeed()
    assert machine.packages().parent.name == "python3.12"
    assert "rebuilding .venv: it has Python 3.12, and PYTHON is 3.13" in machine.succeed(
        PYTHON="python3"
    )
    assert machine.packages().parent.name == "python3.13"


def test_a_moved_venv_is_rebuilt(machine):
    """Its programs (pip, torchrun) would start the interpreter in the old place."""
    machine.succeed()
    old = machine.folder
    machine.folder = old.with_name("moved & renamed")
    old.rename(machine.folder)
    messages = machine.succeed()
    assert f"rebuilding .venv: it was moved here from {old}/.venv, where its programs" in messages
    assert "rebuilding" not in machine.succeed()
    linked = machine.folder / ".venv"  # elsewhere, by its owner's choice
    linked.rename(old.with_name("elsewhere"))
    linked.symlink_to(old.with_name("elsewhere"))
    (linked / "bin" / "pip").write_text(f"#!{old.with_name('elsewhere')}/bin/python3.13\n")
    assert "rebuilding" not in machine.succeed()


def test_a_package_that_was_cut_off_is_installed_again(machine):
    """pip takes a package for installed by its METADATA, which is unpacked before the end."""
    machine.succeed()
    half, whole = machine.packages() / "numpy-1.dist-info", machine.packages() / "b-1.dist-info"
    for info in (half, whole):
        info.mkdir()
        (info / "METADATA").touch()
    (whole / "INSTALLER").touch()
    machine.succeed()
    assert whole.exists() and not half.exists()


def test_a_full_disk_is_reported_before_the_download(machine):
    machine.command("df", "echo; echo /dev/disk 9 9 12000000 1% /")
    message = machine.refuse()
    assert "/ has 12 GB free and needs 16 GB; the packages take 8 GB here" in message
    assert "PIP_NO_CACHE_DIR=1" in message and "TMPDIR" in message
    assert "needs 19 GB" in machine.refuse("--cuda", "12")
    machine.command("df", "echo; echo /dev/disk 9 9 16000000 1% /")
    machine.succeed()
    assert machine.builds() == CPU


def test_each_file_system_needs_its_own_share(machine):
    large, small = "echo /dev/a 9 9 99000000 1% /", "echo /dev/b 9 9 2000000 1% /small"
    machine.command("df", f'echo; case "$2" in {machine.tmp}) {small} ;; *) {large} ;; esac')
    message = machine.refuse()
    assert "disk space: /small has 2 GB free and needs 4 GB; the packages" in message
    cache = machine.cache.parent.parent  # the nearest folder that exists
    machine.command("df", f'echo; case "$2" in {cache}) {small} ;; *) {large} ;; esac')
    assert "disk space: /small has 2 GB free and needs 4 GB; the packages" in machine.refuse()
    machine.succeed(CACHE="")


def test_no_space_is_needed_where_torch_is_installed(machine):
    machine.succeed()
    machine.command("df", "echo; echo /dev/disk 9 9 0 100% /")
    assert "GB" not in machine.succeed()
    assert "not enough disk space" in machine.run("--cuda", "12").stderr


def test_a_disk_of_unknown_size_is_no_obstacle(machine):
    machine.command("df", "exit 1")
    machine.succeed()


def test_every_promise_names_the_same_pythons():
    script, ci, readme, project = (
        (ROOT / name).read_text()
        for name in ("requirements.sh", ".ci/run", "README.md", "pyproject.toml")
    )
    supported = re.search(r'" ([\d. ]+) " == ', script).group(1).split()
    first, last = supported[0], supported[-1]
    assert f"({first} to {last})" in script and f"Python {first} to {last}" in script
    assert f"{{{','.join(supported)}}}" in ci and f"python{first}" in ci
    assert f"Python {first}–{last}" in readme
    assert f'requires-python = ">={first}"' in project and f'python_version = "{first}"' in project
    assert f'target-version = "py{first.replace(".", "")}"' in project
