#!/usr/bin/env bash
# The second model trained with distillation: runs/second_model.sh with a next-token KL towards the reference model
# for control and tuned alike, so that neither learns more of the training text than it has to. On text of other
# data sets locality then costs less; both learn less, too (docs/dev/LOG.md). Half an hour a training on a core.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-results/second_model_distilled} DISTILLATION=${DISTILLATION:-10} WEIGHT=${WEIGHT:-1.35} LIGHT=no
bash runs/second_model.sh
