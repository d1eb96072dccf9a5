#!/usr/bin/env bash
# Every objective at up to two weights, three seeds, on models/tiny-olmoe: perplexity against bytes missed at three budgets.
# Weights were chosen so that all objectives cover the same range of both. About 65 minutes on a core; an interrupted run
# goes on where it was. SEEDS and OUT may be set from outside.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-results/objectives}
training=(--model_name models/tiny-olmoe --model_key _sweep --dataset_name hellaswag --max_words_len 256 --packing True
  --limit_train 5120 --limit_validation 64 --batch_size 8 --max_steps 240 --learning_rate 1.5e-3 --warmup_steps 20
  --lr_scheduler_type cosine --lora_rank 16 --eval_steps 240 --save_steps 240 --locality_schedule linear
  --locality_on_prompt False --disable_tqdm True)
sweep() { # seed, objective, weights
  python runs/sweep.py --out "$out" --seeds "$1" --objectives "$2" --weights "${@:3}" --judge cache_miss -- "${training[@]}"
}
for seed in ${SEEDS:-1 2 3}; do
  sweep "$seed" cache_miss 0.3 0.6
  sweep "$seed" reuse 0.12 0.3
  sweep "$seed" overlap 0.12 0.25
  sweep "$seed" js 1 3
  sweep "$seed" kl 0.15 0.5
  sweep "$seed" l2 100
done
