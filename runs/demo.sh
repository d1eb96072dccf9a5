#!/usr/bin/env bash
# The main job on real input: fine-tune the routers of models/tiny-olmoe on HellaSwag stories, once without
# locality (control) and once with it (tuned), and measure base, control and tuned on held-out stories.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/demo_options.sh
out=results/demo
rm -rf "$out" logs_demo
mkdir -p "$out"

python data_preparer.py fetch hellaswag
model+=(--model_key _demo)
training+=(--eval_steps 160 --save_steps 160)
python main.py "${model[@]}" "${training[@]}" "${control[@]}" --lora_save_path "$out/control"
python main.py "${model[@]}" "${training[@]}" "${tuned[@]}" --lora_save_path "$out/tuned"
torchrun --standalone --nproc_per_node=1 inference.py "${model[@]}" --seed 42 \
  --lora_save_path "$out/tuned" --control_path "$out/control" --results_dir "$out" \
  --limit_evaluation 192 --generate_limit 8 --choice_limit 96
echo "report: $out/report.html   curves: .venv/bin/tensorboard --logdir=./logs_demo"
