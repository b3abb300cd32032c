#!/usr/bin/env bash
# One command per reported number.
#
#   bash language_guidance_benchmark_runs.sh GROUP [SEED...] [-- FLAG...]
#
# GROUP   emoji     the table of README.md: offline, on a CPU
#         emoji_validation  how its weight, temperature and shift were chosen: on held-out
#                   training classes, seed 0
#         emoji_long        the same words at twice the length and a constant rate, seed 0
#         cub200    the published multisimilarity runs on CUB200-2011, Roth et al., CVPR 2022
#         cars196   the same on CARS196
# SEED    0 1 2 for emoji unless given; the published seed of each row for the others
# FLAG    added to every command, such as --source_path data --log_online
#
# Environment: PYTHON is the interpreter (default .venv/bin/python); DRY_RUN=1 prints the commands
# and runs none.
set -euo pipefail
cd "$(dirname "$0")"

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; }

group=${1:-}
[ "$#" -eq 0 ] || shift
seeds=()
while [ "$#" -gt 0 ] && [ "$1" != -- ]; do
    seeds+=("$1")
    shift
done
[ "$#" -eq 0 ] || shift
extra=("$@")
python=${PYTHON:-.venv/bin/python}

run() { # NAME FLAG...: one run of main.py; NAME is its W&B group and, with the seed, its folder
    local command=("$python" main.py --group "$@" ${extra[@]+"${extra[@]}"})
    printf '+ '
    printf '%q ' "${command[@]}"
    printf '\n'
    [ -n "${DRY_RUN:-}" ] || "${command[@]}"
}

emoji() {
    local seed common guided
    [ ${#seeds[@]} -gt 0 ] || seeds=(0 1 2)
    for seed in "${seeds[@]}"; do
        common=(--dataset emoji --loss multisimilarity --n_epochs 8 --scheduler cosine
            --evaluate_every 8 --no_train_metrics --seed "$seed")
        guided=("${common[@]}" --language_distill_w 7.5 --language_shift 0 --language_prompt '{}')
        run baseline "${common[@]}"
        run classnames "${guided[@]}"
        run pseudolabels "${guided[@]}" --language_pseudoclass
        run permuted "${guided[@]}" --language_control permuted
    done
}

emoji_validation() {
    local seed common
    [ ${#seeds[@]} -gt 0 ] || seeds=(0)
    for seed in "${seeds[@]}"; do
        common=(--dataset emoji --loss multisimilarity --n_epochs 12 --scheduler cosine
            --evaluate_every 12 --no_train_metrics --no_test_metrics
            --use_tv_split --tv_split_perc 0.6 --seed "$seed")
        run val_baseline "${common[@]}"
        common+=(--language_prompt '{}' --language_shift 0)
        run val_w7.5 "${common[@]}" --language_distill_w 7.5
        run val_w7.5_permuted "${common[@]}" --language_distill_w 7.5 --language_control permuted
        run val_w20 "${common[@]}" --language_distill_w 20
        run val_w10_T0.2 "${common[@]}" --language_distill_w 10 --language_temp 0.2
        run val_w7.5_published "${common[@]}" --language_distill_w 7.5 --language_shift 1 \
            --language_prompt 'a photo of a {}'
    done
}

emoji_long() {
    local seed common
    [ ${#seeds[@]} -gt 0 ] || seeds=(0)
    for seed in "${seeds[@]}"; do
        common=(--dataset emoji --loss multisimilarity --n_epochs 16 --evaluate_every 4
            --no_train_metrics --seed "$seed")
        run long_baseline "${common[@]}"
        run long_classnames "${common[@]}" --language_distill_w 7.5 --language_shift 0 \
            --language_prompt '{}'
    done
}

# DATASET DIM SEED EPOCHS BS WEIGHT: guided by pseudolabels, with the loss as released, which the
# published weights were tuned with.
published() {
    local dataset=$1 dim=$2 seed=$3 epochs=$4 bs=$5 weight=$6
    local flags=(--dataset "$dataset" --embed_dim "$dim" --n_epochs "$epochs" --tau "$epochs"
        --gamma 1 --bs "$bs" --samples_per_class 2 --loss multisimilarity
        --loss_multisimilarity_released --arch resnet50_frozen_normalize --no_train_metrics
        --language_distill_w "$weight" --language_pseudoclass)
    local s
    for s in "${seeds[@]:-$seed}"; do
        run "${dataset}_${dim}_multisimilarity_pseudolabels" "${flags[@]}" --seed "$s"
    done
}

case "$group" in
    emoji | emoji_validation | emoji_long) "$group" ;;
    cub200)
        published cub200 128 2 200 90 7.5
        published cub200 512 0 150 90 10
        ;;
    cars196)
        published cars196 128 1 250 108 6
        published cars196 512 0 250 108 5.5
        ;;
    *)
        usage
        [ -z "$group" ] || echo "unknown group: $group" >&2
        exit 2
        ;;
esac
