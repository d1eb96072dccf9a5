#!/usr/bin/env bash
# What re-routing costs in text that a model writes by itself: of margin, own_weight and regret the settings that cost 0.5, 1 and
# 2 % of perplexity on validation text, judged on test text of both small models. On a core about ten minutes for the first model,
# an hour for the second one, and half an hour more where that has to be built; an interrupted run goes on where it was. OUT and
# WRITTEN (texts that the second model writes) may be set from outside.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-results/free_running}
moe=.cache/smollm2-moe
mkdir -p "$out"
[ -f "$moe/config.json" ] || python models/tiny-smollm2-moe/build.py --output_dir "$moe"
price() {
  [ -f "$out/$1.json" ] || python runs/free_running.py --json "$out/$1.json" --use_lora False --max_words_len 256 \
    --resume True --expert_budget 25% --decode_policy lru --free_running 48 --seed 0 "${@:2}" | tee "$out/$1.md"
}
price tiny-olmoe --model_name models/tiny-olmoe --dataset_name hellaswag --limit_evaluation 128 --generate_limit 32
price smollm2-moe --model_name "$moe" --dataset_name runs/second_model/boolq.toml --limit_evaluation 32 \
  --generate_limit "${WRITTEN:-16}" --validation_requests 32
