# What the trainings of the second model have in common: the model, which is built first where it is missing, the text and the
# options. To be sourced in the root of the repository. STEPS, RATE and DISTILLATION may be set from outside.
moe=.cache/smollm2-moe
steps=${STEPS:-480}
[ -f "$moe/config.json" ] || python models/tiny-smollm2-moe/build.py --output_dir "$moe"

model=(--model_name "$moe" --model_key _second)
# Two texts are about 200 tokens. A higher rate loses what the gates were spared: docs/dev/LOG.md.
training=(--dataset_name runs/second_model/train.toml --max_words_len 256 --packing True --batch_size 2
  --max_steps "$steps" --eval_steps "$steps" --save_steps 100 --save_total_limit 1 --load_best_model_at_end False
  --limit_validation 32 --learning_rate "${RATE:-4e-4}" --lr_scheduler_type cosine --warmup_steps 12 --bf16 True
  --lora_rank 8 --train_scope all --resume_from_checkpoint auto --distillation_weight "${DISTILLATION:-0}")
train() { # folder, options
  [ -f "$1/adapter_config.json" ] || python main.py "${model[@]}" "${training[@]}" --lora_save_path "$@"
}
