#!/usr/bin/env bash
# Re-routing, training and both on the second model, with the adapters of runs/second_model.sh (which comes first): what each
# misses and switches at a cache of 25 %, against the control's own choice. About a quarter of an hour a seed on a core.
# ADAPTER (light or tuned), STRATEGIES and SEEDS may be set from outside.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-results/second_model}
adapter=${ADAPTER:-light}
for seed in ${SEEDS:-0 1 2}; do
  folder=$out/seed-$seed
  for text in "piqa 192" "boolq 64"; do
    read -r name requests <<< "$text"
    report=$folder/methods-$adapter-$name.json
    [ -f "$report" ] || python benchmarks/methods.py --json "$report" \
      --model_name .cache/smollm2-moe --lora_save_path "$folder/$adapter" --control_path "$folder/control" \
      --dataset_name "runs/second_model/$name.toml" --max_words_len 256 --limit_evaluation "$requests" \
      --budgets 25% --policies lru --strategies ${STRATEGIES:-margin:loss=0.026} --most_perplexity 1.01
  done
done
