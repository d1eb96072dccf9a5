#!/usr/bin/env bash
# Every lever side by side on held-out stories: eviction policy, re-routing, training, and both. `make demo` comes
# first: it trains the adapters (control: the same fine-tuning without locality).
set -euo pipefail
cd "$(dirname "$0")/.."
adapters=(--use_lora False)
if [ -d results/demo/tuned ]; then
  adapters=(--lora_save_path results/demo/tuned --control_path results/demo/control)
fi
mkdir -p results/levers
python benchmarks/levers.py --json results/levers/levers.json --plot results/levers/levers.png \
  --model_name models/tiny-olmoe --dataset_name hellaswag --max_words_len 256 --limit_evaluation 192 \
  "${adapters[@]}" "$@"
