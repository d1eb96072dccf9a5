#!/usr/bin/env bash
# Training under re-routing on the second model: the same short fine-tuning with the router's own choice (control) and with a
# choice that prefers the experts in a cache of 25 % (tuned), then both on 128 passages of BoolQ's test split, with and without
# re-routing, each against the control's own choice. An hour a seed on a core; an interrupted run goes on where it was. SEEDS,
# STEPS, STRATEGY (trained under), MEASURED (re-routed by), PASSAGES (which ones, options of inference.py) and OUT may be set
# from outside.
set -euo pipefail
cd "$(dirname "$0")/.."
STEPS=${STEPS:-160}
source runs/second_model_options.sh
for seed in ${SEEDS:-0}; do
  folder=${OUT:-results/second_model_rerouted}/seed-$seed
  train "$folder/control" --seed "$seed" --consecutive_expert_loss_weight 0
  train "$folder/tuned" --seed "$seed" --consecutive_expert_loss_weight 0 --train_rerouting_cache lru@25% \
    --train_rerouting "${STRATEGY:-own_weight:below=0.034}"
  # shellcheck disable=SC2086 # several words each
  [ -f "$folder/methods.json" ] || python benchmarks/methods.py --json "$folder/methods.json" "${model[@]}" \
    --dataset_name runs/second_model/boolq.toml --max_words_len 256 ${PASSAGES:---limit_start 1000 --limit 128} \
    --eval_batch_size 4 --lora_save_path "$folder/tuned" --control_path "$folder/control" --budgets 25% --policies lru \
    --strategies ${MEASURED:-own_weight:below=0.035}
done
