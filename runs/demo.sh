#!/usr/bin/env bash
# The main job on real input: fine-tune the routers of models/tiny-olmoe on HellaSwag stories, once without
# locality (control) and once with it (tuned), and measure base, control and tuned on held-out stories.
set -euo pipefail
cd "$(dirname "$0")/.."
out=results/demo
rm -rf "$out" logs_demo
mkdir -p "$out"

python data_preparer.py fetch hellaswag
model=(--model_name models/tiny-olmoe --model_key _demo --dataset_name hellaswag --max_words_len 256)
training=(--packing True --limit_train 5120 --limit_validation 128 --batch_size 16 --learning_rate 1.5e-3
  --warmup_steps 40 --lr_scheduler_type cosine --lora_rank 16 --lora_extra_modules gate
  --eval_steps 160 --save_steps 160)
python main.py "${model[@]}" "${training[@]}" --lora_save_path "$out/control" --consecutive_expert_loss_weight 0
python main.py "${model[@]}" "${training[@]}" --lora_save_path "$out/tuned" \
  --consecutive_expert_loss_type cache_miss --consecutive_expert_loss_weight 0.45 \
  --locality_schedule linear --locality_on_prompt False
torchrun --standalone --nproc_per_node=1 inference.py "${model[@]}" --seed 42 \
  --lora_save_path "$out/tuned" --control_path "$out/control" --results_dir "$out" \
  --limit_evaluation 192 --generate_limit 8 --choice_limit 96
echo "report: $out/report.html   curves: .venv/bin/tensorboard --logdir=./logs_demo"
