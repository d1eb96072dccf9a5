"""A folder of task files for the harness with data beside them: one of each kind of request, and a group."""

import json
import random
from pathlib import Path

SPLIT = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/rows.jsonl
test_split: test
metadata:
  version: 1.0
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
"""
GENERATE = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs:
  until: ["w7", "\\n"]
  max_gen_toks: 6
  do_sample: false
metric_list:
  - metric: exact_match
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""
BODIES = {"words_choice": CHOICE, "words_generate": GENERATE, "words_rolling": ROLLING, "words_other": CHOICE}
GROUP = "group: words_group\ntask: [words_choice, words_other]\naggregate_metric_list:\n  - metric: acc\n"


def make_tasks(folder: Path, rows: int = 5) -> Path:
    """`words_choice`, `words_other` and the group of both, `words_generate`, `words_rolling`."""
    folder.mkdir(parents=True)
    lines = [json.dumps(_row(number)) for number in range(rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    for name, body in BODIES.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{SPLIT.format(folder=folder)}{body}")
    (folder / "group.yaml").write_text(GROUP)
    return folder


def _row(number: int) -> dict:
    draw = random.Random(number)
    question = " ".join(f"w{draw.randrange(100)}" for _ in range(3 + 4 * number))
    choices = [" ".join(f"w{draw.randrange(100)}" for _ in range(1 + i)) for i in range(3)]
    return {"question": question, "choices": choices, "gold": number % 3}
