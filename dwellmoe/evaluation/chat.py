"""Knows how to talk with a loaded model line by line and what each reply did to a cache; loads nothing.

Letters: K experts chosen, E routed experts a layer.
"""

import sys
from collections.abc import Iterable
from typing import TextIO

from transformers import TextStreamer

from dwellmoe.cache import metrics
from dwellmoe.cache.replay.replay import replay
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.generation import generate
from dwellmoe.evaluation.recording import Recording, has_pairs
from dwellmoe.evaluation.report.engine_rows import reply_cost


class _Printer(TextStreamer):
    """Prints a reply while it is generated."""

    def __init__(self, tokenizer, out: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.out, self.begun = out, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        print(text, file=self.out, end="", flush=True)


def chat(
    evaluated: EvaluatedModel,
    max_new_tokens: int,
    lines: Iterable[str] = sys.stdin,
    out: TextIO = sys.stdout,
    temperature: float = 0.0,
) -> None:
    """Answers each line until they end, or Ctrl-C, word by word; behind a reply stand its decode ECR and LRU
    hit rate, and what an offloading engine did for it.

    The conversation is the prompt, as the tokenizer's chat template words it (without one: plain lines).
    """
    turns: list[dict[str, str]] = []
    print(f"chat with {evaluated.name}: one message a line, end with Ctrl-D", file=out)
    try:
        for line in lines:
            if line.strip():
                turns.append({"role": "user", "content": line.strip()})
                prompt, printer = _prompt_ids(evaluated, turns), _Printer(evaluated.tokenizer, out)
                how = {"temperature": temperature, "streamer": printer}
                answers, recording = generate(evaluated, [0], [prompt], max_new_tokens, **how)
                turns.append({"role": "assistant", "content": answers[0].text.strip()})
                print(f"\n[{what_it_cost(recording)}{reply_cost(evaluated)}]", file=out, flush=True)
    except KeyboardInterrupt:
        print("\nchat ended", file=out)


def what_it_cost(recording: Recording) -> str:
    """ECR of a reply's generated tokens, and the hit rate of a cold LRU cache over them."""
    trace = recording.trace
    if not has_pairs(trace, "decode"):
        return "too short for an ECR"
    slots = max(trace.top_k, trace.num_experts // 4)
    row = replay(trace, "lru", slots, phase="decode")
    ecr = metrics.ecr(trace, "decode").value
    chance = trace.top_k / trace.num_experts
    cache = f"{slots} of {trace.num_experts} experts a layer, cold"
    return f"ECR {ecr:.3f} (chance {chance:.3f}), LRU hit rate {row.hit_rate:.3f} ({cache})"


def _prompt_ids(evaluated: EvaluatedModel, turns: list[dict[str, str]]) -> list[int]:
    tokenizer = evaluated.tokenizer
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    return tokenizer("\n".join(turn["content"] for turn in turns) + "\n")["input_ids"]
