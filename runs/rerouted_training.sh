#!/usr/bin/env bash
# Training under re-routing: the same fine-tuning of models/tiny-olmoe with the router's own choice (control) and with
# a choice that prefers the experts in a cache of 25 % (tuned); then both on held-out stories, with and without
# re-routing. SEEDS may
# be set from outside.
set -euo pipefail
cd "$(dirname "$0")/.."

python data_preparer.py fetch hellaswag
model=(--model_name models/tiny-olmoe --model_key _rerouted --dataset_name hellaswag --max_words_len 256)
training=(--packing True --limit_train 5120 --limit_validation 128 --batch_size 16 --learning_rate 1.5e-3
  --warmup_steps 40 --lr_scheduler_type cosine --lora_rank 16 --lora_extra_modules gate
  --eval_steps 160 --save_steps 160 --overwrite_output True)
for seed in ${SEEDS:-42}; do
  out=results/rerouted/seed-$seed
  mkdir -p "$out"
  python main.py "${model[@]}" "${training[@]}" --lora_save_path "$out/control" --consecutive_expert_loss_weight 0 \
    --seed "$seed"
  python main.py "${model[@]}" "${training[@]}" --lora_save_path "$out/tuned" --consecutive_expert_loss_weight 0 \
    --train_rerouting margin:loss=0.2 --train_rerouting_cache lru@25% --seed "$seed"
  python benchmarks/methods.py --json "$out/methods.json" --plot "$out/methods.png" "${model[@]}" --limit_evaluation 192 \
    --lora_save_path "$out/tuned" --control_path "$out/control" --budgets 25% --policies lru ml_habits \
    --strategies margin:loss=0.12 margin:loss=0.16 margin:loss=0.2 margin:loss=0.25
done
