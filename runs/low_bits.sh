#!/usr/bin/env bash
# What experts in low bits cost and buy on both small models, with the adapters of runs/demo.sh and runs/second_model.sh (seed 0),
# which are trained first where they are missing. The bytes are 16.7 % of the experts in 16 bits, as 2 GiB are of OLMoE-1B-7B's
# 12.9 GB. About ten minutes a model on a core beside training; an interrupted run goes on where it was. OUT, MODELS ("tiny",
# "second"), and of the second model TRAINED (no: without the adapter) and REQUESTS may be set from outside.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-results/low_bits}
moe=.cache/smollm2-moe
mkdir -p "$out"
measure() {
  [ -f "$out/$1.json" ] || python runs/low_bits.py --json "$out/$1.json" --resume True --dtype bfloat16 --max_words_len 256 \
    --expert_budget 16.7% --decode_policy lru --choice_limit 0 --generate_limit 4 --max_new_tokens 24 "${@:2}" | tee "$out/$1.md"
}
for model in ${MODELS:-tiny second}; do
  case $model in
  tiny)
    [ -f results/demo/tuned/adapter_config.json ] || bash runs/demo.sh
    measure tiny-olmoe --model_name models/tiny-olmoe --lora_save_path results/demo/tuned --dataset_name hellaswag \
      --limit_evaluation 96 --routing_strategy margin:loss=0.12
    ;;
  second)
    [ -f "$moe/config.json" ] || python models/tiny-smollm2-moe/build.py --output_dir "$moe"
    adapter=(--lora_save_path results/second_model/seed-0/tuned)
    if [ "${TRAINED:-yes}" = no ]; then
      adapter=(--use_lora False)
    elif [ ! -f results/second_model/seed-0/tuned/adapter_config.json ]; then
      SEEDS=0 LIGHT=no bash runs/second_model.sh
    fi
    measure smollm2-moe --model_name "$moe" "${adapter[@]}" --dataset_name runs/second_model/boolq.toml \
      --limit_evaluation "${REQUESTS:-32}" --routing_strategy margin:loss=0.026
    ;;
  *)
    echo "MODELS: '$model': give tiny, second" >&2
    exit 2
    ;;
  esac
done
