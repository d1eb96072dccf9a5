#!/usr/bin/env bash
# Every method side by side on held-out stories: eviction policy, re-routing, training, and the last two together, each
# against the control, the same fine-tuning without them. Run `STRATEGY=margin:loss=0.2 bash runs/rerouted_training.sh`
# first, which trains the adapters under the strategy they are measured with, or `make demo`, which gives others. Ten
# minutes on a core.
set -euo pipefail
cd "$(dirname "$0")/.."
adapters=(--use_lora False)
for trained in results/demo results/rerouted/seed-42; do
  if [ -d "$trained/tuned" ]; then
    adapters=(--lora_save_path "$trained/tuned" --control_path "$trained/control")
  fi
done
mkdir -p results/methods
python benchmarks/methods.py --json results/methods/methods.json --plot results/methods/methods.png \
  --model_name models/tiny-olmoe --dataset_name hellaswag --max_words_len 256 --limit_evaluation 48 \
  --policies lru ml_habits --strategies margin:loss=0.12 margin:loss=0.2 "${adapters[@]}" "$@"
