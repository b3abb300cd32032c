#!/usr/bin/env bash
# One command per reported number.
#
#   bash language_guidance_benchmark_runs.sh GROUP [SEED...] [--row ROW] [--list] [--array] [-- FLAG...]
#
# GROUP   quick_start  the table of README.md: its default command beside the same without words, with
#                   permuted names and with free class vectors; offline, on a CPU
#         emoji     L_match alone, longer: docs/emoji_benchmark.md
#         emoji_validation  how its weight, temperature and shift were chosen: on held-out
#                   training classes, seed 0
#         emoji_long        the same words at twice the length and a constant rate, seed 0
#         emoji_curve       what words add from 16 to 622 training classes, at 32 px; drawn by
#                   python -m tests.benchmarks.learning_curve_picture
#         emoji_weights  other weights at 124 of these classes, and a network that over-fits 31
#         league    every objective with and without class names, seed 0, 3.5 minutes on one
#                   core each; LOSSES="circle supcon" runs only these
#         openclipart  pairs by captions beside one image twice and random partners, offline, on a
#                   CPU; the other objectives at seed 0 alone
#         openclipart_scratch  the same pairs from random weights, as published, and from ImageNet
#                   weights, scored on coarse classes: the subgroups of emoji
#         redcaps   the published self-supervision on RedCaps, with and without language
#         cub200    the published runs on CUB200-2011, multisimilarity and S2SD, Roth et al., CVPR
#                   2022, each at the published constant rate and by the step schedule beside it
#         cars196   the same on CARS196
#         baselines every objective without words on the benchmarks, as Roth et al., Revisiting
#                   Training Strategies, ICML 2020, train them; LOSSES as above, and
#                   DATASETS="cub200 cars196"
#         all       all of these
# SEED    0 1 2 for emoji, both openclipart groups and baselines unless given, 0 1 2 3 4 for
#         quick_start, emoji_curve and emoji_weights; the published seed of each row for cub200 and cars196; 0 for the others
# ROW     run only this one: a name, or a number as --list shows it
# --list  list the rows and run none
# --array runs the row whose number the job scheduler sets: in JOB_INDEX, or else in
#         SLURM_ARRAY_TASK_ID, PBS_ARRAY_INDEX or SGE_TASK_ID, counted from 1. For example
#           sbatch --array=1-8 --gres=gpu:1 --wrap \
#               "bash language_guidance_benchmark_runs.sh cub200 --array -- --source_path data"
# FLAG    added to every command, such as --source_path data --log_online, or --dry_run
#
# Finished runs are skipped and interrupted ones are resumed, so that the command can be repeated.
#
# Environment: PYTHON is the interpreter (default .venv/bin/python); JOBS=2 runs two at a time with
# an equal share of the cores; DRY_RUN=1 prints the commands and runs none.
set -euo pipefail
cd "$(dirname "$0")"

groups=(quick_start emoji emoji_validation emoji_long emoji_curve emoji_weights league openclipart
    openclipart_scratch redcaps cub200 cars196 baselines)

fail() { echo "language_guidance_benchmark_runs.sh: $*" >&2; exit 2; }
usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; }

group=${1:-}
case " ${groups[*]} all " in
    *" ${group:-none given} "*) shift ;;
    *) usage; [ -z "$group" ] || fail "unknown group: $group"; exit 2 ;;
esac
seeds=() wanted='' list='' extra=()
while [ "$#" -gt 0 ]; do
    case "$1" in
        [0-9]*) seeds+=("$1") ;;
        --row) [ "$#" -gt 1 ] || fail "--row needs a name or a number"; wanted=$2; shift ;;
        --list) list=yes ;;
        --array)
            wanted=${JOB_INDEX:-${SLURM_ARRAY_TASK_ID:-${PBS_ARRAY_INDEX:-${SGE_TASK_ID:-}}}}
            [ -n "$wanted" ] || fail "--array: no job scheduler set an index; set JOB_INDEX"
            ;;
        --) shift; extra=("$@"); break ;;
        *) fail "$1 is no seed and no option; flags of main.py follow --" ;;
    esac
    shift
done
python=${PYTHON:-.venv/bin/python}

pids=()
jobs=${JOBS:-1}
if [ "$jobs" -gt 1 ]; then
    cores=$("$python" -c 'import os; print(os.cpu_count())')
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > jobs ? cores / jobs : 1))}
fi

seeds_or() { echo "${seeds[@]:-$*}"; } # the seeds that were given, or these

number=0 chosen=0
run() { # NAME FLAG...: a row, one run of main.py; NAME is its W&B group and, with the seed, its folder
    number=$((number + 1))
    case "$wanted" in '' | "$1" | "$number") ;; *) return 0 ;; esac
    chosen=$((chosen + 1))
    local command=("$python" main.py --resume --group "$@" ${extra[@]+"${extra[@]}"})
    if [ -n "$list" ]; then
        printf '%4d  %s ' "$number" "$1"
        printf ' %q' "${@:2}"
        printf '\n'
        return
    fi
    printf '+ '
    printf '%q ' "${command[@]}"
    printf '\n'
    if [ -n "${DRY_RUN:-}" ]; then
        return
    elif [ "$jobs" -eq 1 ]; then
        "${command[@]}"
    else
        while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do sleep 1; done
        "${command[@]}" &
        pids+=($!)
    fi
}

quick_start() {
    local seed common
    for seed in $(seeds_or 0 1 2 3 4); do
        common=(--dataset emoji --loss multisimilarity --evaluate_every 6 --no_train_metrics
            --no_report --seed "$seed")
        run quick_none "${common[@]}"
        run quick_words "${common[@]}" --language_distill_w 7.5
        run quick_permuted "${common[@]}" --language_distill_w 7.5 --language_control permuted
        run quick_free "${common[@]}" --language_proxy_w 0.03 --language_proxy_vectors free
        run quick_match "${common[@]}" --language_distill_w 7.5 --language_proxy_w 0
    done
}

emoji() {
    local seed common guided
    for seed in $(seeds_or 0 1 2); do
        common=(--dataset emoji --loss multisimilarity --n_epochs 8 --scheduler cosine
            --evaluate_every 8 --no_train_metrics --seed "$seed")
        guided=("${common[@]}" --language_distill_w 7.5 --language_shift 0 --language_prompt '{}'
            --language_proxy_w 0)
        run baseline "${common[@]}"
        run classnames "${guided[@]}"
        run pseudolabels "${guided[@]}" --language_pseudoclass
        run permuted "${guided[@]}" --language_control permuted
    done
}

emoji_validation() {
    local seed common
    for seed in $(seeds_or 0); do
        common=(--dataset emoji --loss multisimilarity --n_epochs 12 --scheduler cosine
            --evaluate_every 12 --no_train_metrics --no_test_metrics
            --use_tv_split --tv_split_perc 0.6 --seed "$seed")
        run val_baseline "${common[@]}"
        common+=(--language_prompt '{}' --language_shift 0 --language_proxy_w 0)
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
    for seed in $(seeds_or 0); do
        common=(--dataset emoji --loss multisimilarity --n_epochs 16 --evaluate_every 4
            --no_train_metrics --seed "$seed")
        run long_baseline "${common[@]}"
        run long_classnames "${common[@]}" --language_distill_w 7.5 --language_shift 0 \
            --language_prompt '{}' --language_proxy_w 0
    done
}

emoji_curve() { # SIZES="16 622" runs only these numbers of training classes
    local seed n bs steps common match
    for seed in $(seeds_or 0 1 2 3 4); do
        for n in ${SIZES:-16 31 62 124 311 622}; do
            # Up to 124 classes as many steps as are best on validation classes, without words.
            case "$n" in
                16) bs=32 steps=40 ;;
                31) bs=56 steps=120 ;;
                62) bs=56 steps=144 ;;
                124) bs=56 steps=220 ;;
                311) bs=56 steps=280 ;;
                *) bs=56 steps=400 ;;
            esac
            common=(--dataset emoji --loss multisimilarity --image_size 32 --train_classes "$n"
                --bs "$bs" --max_steps "$steps" --evaluate_every 1000 --no_train_metrics --no_report
                --language_shift 0 --language_prompt '{}' --seed "$seed")
            run "curve_${n}_none" "${common[@]}"
            match=("${common[@]}" --language_distill_w 7.5 --language_proxy_w 0)
            run "curve_${n}_match" "${match[@]}"
            run "curve_${n}_match_permuted" "${match[@]}" --language_control permuted
            case "$n" in 31 | 124 | 622) ;; *) continue ;; esac # class vectors, at half of the sizes
            run "curve_${n}_proxy" "${common[@]}" --language_proxy_w 0.03
            run "curve_${n}_proxy_permuted" "${common[@]}" --language_proxy_w 0.03 \
                --language_control permuted
            run "curve_${n}_proxy_free" "${common[@]}" --language_proxy_w 0.03 \
                --language_proxy_vectors free
            run "curve_${n}_both" "${common[@]}" --language_distill_w 7.5 --language_proxy_w 0.03
        done
    done
}

emoji_weights() { # beside curve_124_none and curve_31_none of emoji_curve
    local seed common more
    for seed in $(seeds_or 0 1 2 3 4); do
        common=(--dataset emoji --loss multisimilarity --image_size 32 --bs 56
            --evaluate_every 1000 --no_report --language_shift 0 --language_prompt '{}'
            --seed "$seed")
        more=("${common[@]}" --train_classes 124 --max_steps 220)
        run curve_124_proxy0.1 "${more[@]}" --language_proxy_w 0.1
        run curve_124_proxy0.1_permuted "${more[@]}" --language_proxy_w 0.1 \
            --language_control permuted
        run curve_124_proxy0.1_free "${more[@]}" --language_proxy_w 0.1 \
            --language_proxy_vectors free
        run curve_124_proxy0.01 "${more[@]}" --language_proxy_w 0.01
        run curve_124_match2 "${more[@]}" --language_distill_w 2 --language_proxy_w 0
        run curve_124_match20 "${more[@]}" --language_distill_w 20 --language_proxy_w 0
        # Where a network over-fits: three times the steps, and BatchNorm that adapts.
        more=("${common[@]}" --train_classes 31 --max_steps 360 --arch efficientnet_lite0_normalize)
        run overfit_none "${more[@]}"
        run overfit_match "${more[@]}" --language_distill_w 7.5 --language_proxy_w 0
        run overfit_match_permuted "${more[@]}" --language_distill_w 7.5 --language_proxy_w 0 \
            --language_control permuted
    done
}

objectives() { # those of LOSSES, or every one that compares labels
    echo "${LOSSES:-angular arcface circle contrastive cosface histogram lifted margin \
        multisimilarity npair oproxy proxynca proxynca_pp quadruplet s2sd smooth_ap snr softmax \
        softtriplet subcenter_arcface supcon triplet}"
}

league() {
    local seed loss flags
    for seed in $(seeds_or 0); do
        for loss in $(objectives); do
            flags=(--dataset emoji --loss "$loss" --n_epochs 3 --scheduler cosine
                --evaluate_every 3 --no_train_metrics --seed "$seed")
            # At the published rates class vectors hardly move in 147 steps: all get 1e-2.
            case "$loss" in
                softmax | arcface | cosface | subcenter_arcface)
                    flags+=("--loss_${loss}_lr" 1e-2)
                    ;;
                oproxy | proxynca | proxynca_pp | softtriplet)
                    flags+=("--loss_${loss}_lrmulti" 33.3)
                    ;;
            esac
            # As in its authors' commands; without it the embeddings collapse.
            [ "$loss" != oproxy ] || flags+=(--warmup 1)
            run "league_$loss" "${flags[@]}"
            run "league_${loss}_guided" "${flags[@]}" --language_distill_w 7.5 \
                --language_shift 0 --language_prompt '{}' --language_proxy_w 0
        done
    done
}

openclipart() {
    local seed common small first
    first=$(seeds_or 0 1 2)
    # Heads of a size that 5,281 drawings and two cores can train, SimCLR's as in its paper.
    small=(--loss_simclr_layers 2 --loss_simclr_hidden_dim 512 --loss_simsiam_hidden_dim 512 --loss_simsiam_proj_dim 512
        --loss_simsiam_pred_dim 128 --loss_clip_text frozen --loss_clip_proj_dim 128)
    for seed in $(seeds_or 0 1 2); do
        common=(--dataset openclipart --evaluations retrieval linear_probe fewshot knn
            --seed "$seed" "${small[@]}")
        run simclr "${common[@]}" --loss simclr --data_sampler augmented_pairs
        run simclr_language "${common[@]}" --loss simclr --data_sampler language_pairs
        run simclr_random "${common[@]}" --loss simclr --data_sampler random_pairs
        run simclr_language_views "${common[@]}" --loss simclr --data_sampler language_pairs \
            --augmentation simclr --data_pairs_threshold 0.7
        [ "$seed" -eq "${first%% *}" ] || continue
        run untrained "${common[@]}" --loss simclr --data_sampler augmented_pairs --n_epochs 0
        run simsiam "${common[@]}" --loss simsiam --data_sampler augmented_pairs
        run simsiam_language "${common[@]}" --loss simsiam --data_sampler language_pairs
        run clip "${common[@]}" --loss clip
        run slip "${common[@]}" --loss slip
    done
}

openclipart_scratch() {
    local seed common start flags
    for seed in $(seeds_or 0 1 2); do
        common=(--dataset openclipart --loss simclr --loss_simclr_layers 2
            --loss_simclr_hidden_dim 512 --image_size 32 --bs 128 --evaluations linear_probe fewshot
            --evaluation_datasets emoji:groups emoji:groups_apart --no_report --seed "$seed")
        for start in scratch pretrained; do
            case "$start" in
                scratch)
                    flags=(--arch test_resnet --not_pretrained --no_zero_init_last --lr 1e-3)
                    ;;
                pretrained) flags=() ;;
            esac
            run "${start}_untrained" "${common[@]}" "${flags[@]}" --n_epochs 0
            case "$start" in
                scratch) flags+=(--n_epochs 6 --evaluate_every 6 --warmup_steps 40) ;;
            esac
            run "${start}_simclr" "${common[@]}" "${flags[@]}" --data_sampler augmented_pairs
            run "${start}_language" "${common[@]}" "${flags[@]}" --data_sampler language_pairs
            run "${start}_language_views" "${common[@]}" "${flags[@]}" \
                --data_sampler language_pairs --augmentation simclr
            run "${start}_random" "${common[@]}" "${flags[@]}" --data_sampler random_pairs
        done
    done
}

# Section 4 of El Banani et al., CVPR 2023; their batch of 512 is of all processes together.
redcaps() {
    local seed common
    for seed in $(seeds_or 0); do
        common=(--dataset redcaps --arch resnet50 --not_pretrained --loss_simclr_layers 3 --bs 512
            --optim adamw --lr 1e-3 --lr_base_bs 512 --decay 0.01 --no_norm_decay
            --scheduler warmup_cosine --warmup_steps 5000 --max_steps 250000 --use_float16
            --language_model mpnet
            --evaluation_datasets cifar10 cifar100 food101 dtd pets caltech101 flowers
            --evaluations linear_probe fewshot --seed "$seed")
        run simsiam_language "${common[@]}" --loss simsiam --data_sampler language_pairs
        common+=(--no_zero_init_last) # published for all but SimSiam
        run simclr "${common[@]}" --loss simclr --data_sampler augmented_pairs
        run simclr_language "${common[@]}" --loss simclr --data_sampler language_pairs
        run simclr_visual "${common[@]}" --loss simclr --data_sampler language_pairs \
            --data_pairs_by visual
        run clip "${common[@]}" --loss clip --language_model clip
        run slip "${common[@]}" --loss slip --language_model clip
    done
}

# DATASET DIM SEED EPOCHS BS WEIGHT TAU GAMMA [FEAT_W]: guided by pseudolabels, with the batches and
# multisimilarity as released, which the published weights were tuned with; S2SD over it where FEAT_W
# is given. Once at a constant rate, as published, and once by the example schedule, GAMMA at TAU.
published() {
    local dataset=$1 dim=$2 seed=$3 epochs=$4 bs=$5 weight=$6 tau=$7 gamma=$8 feat_w=${9:-}
    local loss=multisimilarity flags s name
    flags=(--dataset "$dataset" --embed_dim "$dim" --n_epochs "$epochs" --bs "$bs"
        --samples_per_class 2 --data_class_replacement --loss_multisimilarity_released
        --arch resnet50_frozen_normalize --no_train_metrics --language_distill_w "$weight"
        --language_pseudoclass)
    if [ -n "$feat_w" ]; then
        loss=s2sd
        flags+=(--loss_s2sd_source multisimilarity --loss_s2sd_target multisimilarity
            --loss_s2sd_pool_aggr --loss_s2sd_feat_distill --loss_s2sd_feat_w "$feat_w"
            --loss_s2sd_feat_distill_delay 0)
    fi
    name="${dataset}_${dim}_${loss}_pseudolabels"
    for s in $(seeds_or "$seed"); do
        run "$name" --loss "$loss" "${flags[@]}" --tau "$epochs" --gamma 1 --seed "$s"
        run "${name}_step" --loss "$loss" "${flags[@]}" --tau "$tau" --gamma "$gamma" --seed "$s"
    done
}

cub200() {
    published cub200 128 2 200 90 7.5 28 0.25
    published cub200 128 2 300 108 1.5 144 0.5 125
    published cub200 512 0 150 90 10 34 0.25
    published cub200 512 0 250 108 2 29 0.5 60
}

cars196() {
    published cars196 128 1 250 108 6 102 0.25
    published cars196 128 0 250 108 2.5 110 0.25 50
    published cars196 512 0 250 108 5.5 107 0.25
    published cars196 512 0 300 108 2 165 0.1 40
}

baselines() {
    local seed dataset loss flags
    for seed in $(seeds_or 0 1 2); do
        for dataset in ${DATASETS:-cub200 cars196 online_products}; do
            for loss in $(objectives); do
                flags=(--dataset "$dataset" --loss "$loss" --arch resnet50_frozen_normalize
                    --embed_dim 128 --bs 112 --samples_per_class 2 --data_class_replacement
                    --n_epochs 150 --lr 1e-5 --decay 4e-4 --no_train_metrics --seed "$seed")
                case "$loss" in
                    oproxy) flags+=(--warmup 1) ;;
                    # Released: no upper cutoff, and no two unit embeddings are farther apart than 2.
                    margin | triplet | contrastive | quadruplet | snr)
                        flags+=(--miner_distance_upper_cutoff 2.1)
                        ;;
                esac
                run "baseline_$loss" "${flags[@]}"
            done
        done
    done
}

if [ "$group" = all ]; then
    for one in "${groups[@]}"; do "$one"; done
else
    "$group"
fi
[ "$chosen" -gt 0 ] || fail "$group has no row $wanted; --list shows its $number rows"

status=0
for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || status=1; done
exit "$status"
