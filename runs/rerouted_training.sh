#!/usr/bin/env bash
# Training under re-routing: the same fine-tuning of models/tiny-olmoe with the router's own choice (control) and with a choice
# that prefers the experts in a cache of 25 % (tuned); then both on 1,200 held-out stories, with and without re-routing, each
# against the control's own choice. A seed takes half an hour on a core; an interrupted run goes on where it was. SEEDS, STRATEGY
# (trained under), MEASURED (re-routed by), STORIES (which ones, options of inference.py) and OUT may be set from outside.
set -euo pipefail
cd "$(dirname "$0")/.."

python data_preparer.py fetch hellaswag
model=(--model_name models/tiny-olmoe --model_key _rerouted --dataset_name hellaswag --max_words_len 256)
training=(--packing True --limit_train 5120 --limit_validation 128 --batch_size 16 --learning_rate 1.5e-3
  --warmup_steps 40 --lr_scheduler_type cosine --lora_rank 16 --lora_extra_modules gate --resume_from_checkpoint auto
  --eval_steps 160 --save_steps 160 --consecutive_expert_loss_weight 0)
train() { # folder, options
  [ -f "$1/training_summary.json" ] || python main.py "${model[@]}" "${training[@]}" --lora_save_path "$@"
}
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
