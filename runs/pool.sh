#!/usr/bin/env bash
# The objective `pool` beside `cache_miss`, alone and together, one seed, on models/tiny-olmoe: misses and perplexity against a
# control, and the share of decode accesses outside the pool of the prompt. About 20 minutes on a core; an interrupted run goes on
# where it was. `cache_miss` counts answers, as in the demo; `pool` whole stories, for a prompt and its answer shall share a pool.
# SEEDS and OUT may be set from outside.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-results/pool}
training=(--model_name models/tiny-olmoe --model_key _pool --dataset_name hellaswag --max_words_len 256 --packing True
  --limit_train 5120 --limit_validation 64 --batch_size 8 --max_steps 240 --learning_rate 1.5e-3 --warmup_steps 20
  --lr_scheduler_type cosine --lora_rank 16 --eval_steps 240 --save_steps 240 --locality_schedule linear --disable_tqdm True)
sweep() { # on prompts too, objective, weights
  python runs/sweep.py --out "$out" --seeds ${SEEDS:-1} --objectives "$2" --weights "${@:3}" -- \
    "${training[@]}" --locality_on_prompt "$1"
}
sweep False cache_miss 0.3 0.6
sweep True pool 0.3 1
sweep True pool:balance=1 1
sweep True cache_miss+0.5*pool 0.3 0.6
python runs/pool_table.py "$out"
