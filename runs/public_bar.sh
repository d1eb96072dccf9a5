#!/usr/bin/env bash
# The bar that arXiv 2608.18261 set in advance, at least 30 % fewer LRU misses at 25 % of the experts for at most 1 % more
# perplexity: trains control and tuned as runs/demo.sh does, with three seeds, compares them on held-out stories and says whether
# the bar is reached. A seed takes as long as the demo's trainings, and its evaluation six times the demo's. An interrupted run goes
# on where it was. SEEDS, STEPS (default: all 320), STORIES and OUT may be set from outside; other STEPS or STORIES need another OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/demo_options.sh
out=${OUT:-results/public_bar}
every=${STEPS:-160}
model+=(--model_key _bar)
training+=(--eval_steps "$every" --save_steps "$every" --resume_from_checkpoint auto ${STEPS:+--max_steps "$STEPS"})

python data_preparer.py fetch hellaswag
reports=()
for seed in ${SEEDS:-42 1 2}; do
  folder=$out/seed-$seed
  train "$folder/control" --seed "$seed" "${control[@]}"
  train "$folder/tuned" --seed "$seed" "${tuned[@]}"
  [ -f "$folder/report.json" ] || python inference.py "${model[@]}" --lora_save_path "$folder/tuned" \
    --control_path "$folder/control" --results_dir "$folder" --limit_evaluation "${STORIES:-1200}" \
    --generate_limit 0 --choice_limit 0 --policies lru --seed 42
  reports+=("$folder/report.json")
done
python runs/public_bar.py "${reports[@]}"
