#!/usr/bin/env bash
# The second model: SmolLM2-135M as a MoE, fine-tuned on stories, contexts and passages, once without locality
# (control) and once with it (tuned), with three seeds, and measured on BoolQ and PIQA, of which no training has
# seen anything: all as running text, since an answer of one letter has no consecutive tokens to measure.
# Besides, once with a little of it (light), which runs/second_model_methods.sh measures under re-routing.
# An interrupted run goes on where it was. SMOOTH, OBJECTIVE, WEIGHT, DISTILLATION (a KL of control and tuned alike to
# the reference model), LIGHT (no: without it), STEPS, SEEDS and OUT may be set from outside.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-results/second_model}
source runs/second_model_options.sh
locality=(--smooth_examples 128 --locality_schedule linear)
measure() {
  [ -f "$3/report.json" ] || torchrun --standalone --nproc_per_node=1 inference.py "${model[@]}" \
    --lora_save_path "$1" --control_path "$2" --results_dir "$3" --dataset_name "runs/second_model/$4.toml" \
    --max_words_len 256 --limit_evaluation "$5" --generate_limit 0 --choice_limit 0 --policies lru
}

for seed in ${SEEDS:-0 1 2}; do
  folder=$out/seed-$seed
  train "$folder/control" --seed "$seed" --consecutive_expert_loss_weight 0
  train "$folder/tuned" --seed "$seed" "${locality[@]}" --smooth_gates "${SMOOTH:-1.4}" \
    --consecutive_expert_loss_type "${OBJECTIVE:-cache_miss}" --consecutive_expert_loss_weight "${WEIGHT:-0.41}"
  [ "${LIGHT:-yes}" = no ] || train "$folder/light" --seed "$seed" "${locality[@]}" --smooth_gates 0.3 \
    --consecutive_expert_loss_weight 0.1
  measure "$folder/tuned" "$folder/control" "$folder/boolq" boolq 64
  measure "$folder/tuned" "$folder/control" "$folder/piqa" piqa 192
done
