#!/usr/bin/env bash
# Training under re-routing: the same fine-tuning of models/tiny-olmoe with the router's own choice (control) and with a choice
# that prefers the experts in a cache of 25 % (tuned); then both on 1,200 held-out stories, with and without re-routing, each
# against the control's own choice. A seed takes half an hour on a core; an interrupted run goes on where it was. SEEDS, STRATEGY
# (trained under), MEASURED (re-routed by), STORIES (which ones, options of inference.py) and OUT may be set from outside.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/demo_options.sh
model+=(--model_key _rerouted)
training+=(--eval_steps 160 --save_steps 160 --resume_from_checkpoint auto "${control[@]}")

python data_preparer.py fetch hellaswag
for seed in ${SEEDS:-42 1 2}; do
  folder=${OUT:-results/rerouted}/seed-$seed
  train "$folder/control" --seed "$seed"
  train "$folder/tuned" --seed "$seed" --train_rerouting_cache lru@25% \
    --train_rerouting "${STRATEGY:-own_weight:below=0.12}"
  # shellcheck disable=SC2086 # several words each
  [ -f "$folder/methods.json" ] || python benchmarks/methods.py --json "$folder/methods.json" "${model[@]}" \
    ${STORIES:---limit_start 8000 --limit 1200} --lora_save_path "$folder/tuned" --control_path "$folder/control" \
    --budgets 25% --policies lru --strategies ${MEASURED:-own_weight:below=0.13}
done
