# What runs/demo.sh, runs/public_bar.sh and runs/rerouted_training.sh have in common: the model, the text and the trainings, of
# which control and tuned differ in locality alone. To be sourced in the root of the repository.
model=(--model_name models/tiny-olmoe --dataset_name hellaswag --max_words_len 256)
training=(--packing True --limit_train 5120 --limit_validation 128 --batch_size 16 --learning_rate 1.5e-3
  --warmup_steps 40 --lr_scheduler_type cosine --lora_rank 16 --lora_extra_modules gate)
control=(--consecutive_expert_loss_weight 0)
tuned=(--consecutive_expert_loss_type cache_miss --consecutive_expert_loss_weight 0.45
  --locality_schedule linear --locality_on_prompt False)
train() { # folder, options; not again where it is done
  [ -f "$1/training_summary.json" ] || python main.py "${model[@]}" "${training[@]}" --lora_save_path "$@"
}
