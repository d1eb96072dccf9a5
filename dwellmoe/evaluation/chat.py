"""Chats with a loaded model line by line; each reply shows its routing locality and its cache hits.

Letters: K experts chosen, E routed experts a layer.
"""

import sys
from collections.abc import Iterable
from typing import TextIO

from transformers import TextStreamer

from dwellmoe.cache import metrics
from dwellmoe.cache.budget import layer_slots
from dwellmoe.cache.replay.replay import replay
from dwellmoe.errors import UserError
from dwellmoe.evaluation.conversation import Conversation
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.generation import generate
from dwellmoe.evaluation.recording import Recording, has_pairs
from dwellmoe.offload import engine_of


class _Printer(TextStreamer):
    """Prints a reply while it is generated."""

    def __init__(self, tokenizer, out: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.out = out
        self.begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        print(text, file=self.out, end="", flush=True)


def chat(
    evaluated: EvaluatedModel,
    conversation: Conversation,
    max_new_tokens: int,
    lines: Iterable[bytes | str],
    out: TextIO | None = None,
    temperature: float = 0.0,
) -> None:
    """Replies to each line, on `out` or standard output, until the lines end or Ctrl-C is pressed.

    After a reply follow its decode ECR, its LRU hit rate, and the work of the offloading engine if there is
    one. A line that cannot be asked is answered with the reason, and the conversation goes on.
    """
    shown = out or sys.stdout
    print(f"chat with {evaluated.name}: one message a line, end with Ctrl-D", file=shown)
    if conversation.wording.one_by_one:
        task = conversation.wording.task
        print(
            f"each message is asked by itself, in the words of '{task}', without a chat template", file=shown
        )
    try:
        for number, line in enumerate(lines, start=1):
            try:
                if message := decoded_line(line, number):
                    _reply(evaluated, conversation, message, max_new_tokens, temperature, shown)
            except UserError as error:
                print(f"error: {error}", file=shown, flush=True)
    except KeyboardInterrupt:
        print("\nchat ended", file=shown)


def decoded_line(line: bytes | str, number: int) -> str:
    """A line as a message. Raises UserError for bytes that are not UTF-8."""
    try:
        return (line if isinstance(line, str) else line.decode()).removeprefix("\ufeff").strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"line {number} of the chat is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start} of the line"
        ) from None


def _reply(
    evaluated: EvaluatedModel,
    conversation: Conversation,
    message: str,
    max_new_tokens: int,
    temperature: float,
    out: TextIO,
) -> None:
    asked = conversation.ask(message)
    if asked.left_out and conversation.room:
        print(f"[the oldest {asked.left_out} messages are left out: {conversation.room.reason}]", file=out)
    generated = generate(
        evaluated,
        [0],
        [asked.ids],
        max_new_tokens,
        temperature=temperature,
        streamer=_Printer(evaluated.tokenizer, out),
    )
    conversation.add_reply(generated.answers[0].text)
    cost = locality_of_reply(generated.recording) + engine_work(evaluated)
    print(f"\n[{cost}]", file=out, flush=True)


def locality_of_reply(recording: Recording) -> str:
    """ECR of a reply's generated tokens, and the hit rate of a cold LRU cache over them."""
    trace = recording.trace
    if not has_pairs(trace, "decode"):
        return "too short for an ECR"
    slots = layer_slots(trace, "25%")
    hit_rate = replay(trace, "lru", slots, phase="decode").hit_rate
    ecr = metrics.ecr(trace, "decode").value
    chance = trace.top_k / trace.num_experts
    cache = f"{slots} of {trace.num_experts} experts a layer, cold"
    return f"ECR {ecr:.3f} (chance {chance:.3f}), LRU hit rate {hit_rate:.3f} ({cache})"


def engine_work(evaluated: EvaluatedModel) -> str:
    """What the engine did for the last reply; empty where all experts are in memory. Resets its counts."""
    engine = engine_of(evaluated.model)
    if engine is None:
        return ""
    statistics = engine.statistics
    first_seconds = sum(statistics.first_token_seconds[-1:])
    megabytes = (statistics.prefill.disk_bytes + statistics.decode.disk_bytes) / 1e6
    work = (
        f"; engine: first token {first_seconds:.2f} s, then {statistics.token_seconds or 0.0:.3f} s a token, "
        f"{megabytes:.0f} MB read, hit rate {statistics.decode.device_hit_rate:.3f}"
    )
    engine.reset_counts()
    return work
