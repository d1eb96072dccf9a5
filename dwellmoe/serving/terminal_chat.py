"""A chat in the terminal: replies appear while they are written, above live figures of the cache."""

import dataclasses
from collections.abc import Iterable
from time import perf_counter
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import GenerationConfig

from dwellmoe.errors import UserError, unknown_name
from dwellmoe.evaluation.chat import decoded_line
from dwellmoe.evaluation.conversation import Conversation, Room
from dwellmoe.evaluation.generation import run_model
from dwellmoe.offload import PhaseCounts
from dwellmoe.offload.resize import resize
from dwellmoe.serving.figures import AnswerLog, Figures
from dwellmoe.serving.served_model import ServedModel, Variant
from dwellmoe.serving.settings import ChatSettings

HELP = """/budget SIZE      another budget for experts from now on: 8, 25%, 4GiB
/adapter on|off   with the adapter or without it; /adapter NAME: with this one
/stats            what the cache holds and has counted
/new              a new conversation
/help             this list; Ctrl-C ends a reply, Ctrl-D the chat"""
REFRESHES_PER_SECOND = 8
OBEYED = dict.fromkeys({*range(32), *range(127, 160)} - {*map(ord, "\n\t")}, "\ufffd")
"""Characters by which a text could command the terminal, and what is shown in their place."""


class TerminalChat:
    """One conversation after the other with a served model and its adapters."""

    def __init__(self, served: ServedModel, settings: ChatSettings, console: Console) -> None:
        self.served, self.settings, self.console = served, settings, console
        self.variant = [*served.variants.values()][-1]
        """The adapter given last, if there is one."""
        self.conversation = self._new_conversation()
        self._commands = {
            "/budget": self._change_budget,
            "/adapter": self._change_adapter,
            "/stats": self._show_statistics,
            "/new": self._begin_anew,
            "/help": lambda _: self.console.print(HELP),
        }

    def run(self, lines: Iterable[bytes | str]) -> None:
        """Replies to each line, and carries out those that are commands, until they end or Ctrl-C comes
        between two replies. What cannot be done is answered with the reason.
        """
        self.console.print(f"chat with {self.variant.name}: one message a line; /help lists the commands")
        try:
            for number, line in enumerate(lines, start=1):
                try:
                    if text := decoded_line(line, number):
                        self._take(text)
                except UserError as error:
                    self.console.print(f"error: {error}", markup=False)
                except KeyboardInterrupt:  # before the first token of a reply, or during a command
                    self.console.print("[ended by Ctrl-C]", markup=False)
        except KeyboardInterrupt:
            self.console.print("chat ended")

    def _take(self, text: str) -> None:
        if not text.startswith("/"):
            self._reply(text)
            return
        name, _, rest = text.partition(" ")
        if name not in self._commands:
            raise unknown_name("command", name, self._commands)
        self._commands[name](rest.strip())

    def _reply(self, message: str) -> None:
        asked = self.conversation.ask(message)
        if asked.left_out and self.conversation.room:
            self.console.print(f"[the oldest {asked.left_out} messages are left out]", markup=False)
        reply = _Reply(self.served, self.variant)
        live = Live(reply, console=self.console, refresh_per_second=REFRESHES_PER_SECOND)
        try:
            live.start(refresh=True)  # no `with`: interrupted in here, it would never stop
            reply.write(asked.ids, self._config())
        except KeyboardInterrupt:
            reply.note = "ended by Ctrl-C; "
        finally:
            reply.is_written = True
            live.stop()
        self.conversation.add_reply(reply.text)

    def _config(self) -> GenerationConfig:
        evaluated, temperature = self.served.evaluated, self.settings.temperature
        sampling: dict[str, Any] = {"do_sample": bool(temperature)}
        return GenerationConfig(
            max_new_tokens=self.conversation.reply_tokens,
            pad_token_id=evaluated.pad_token_id,
            eos_token_id=evaluated.end_token_ids or None,
            **sampling | ({"temperature": temperature} if temperature else {}),
        )

    def _new_conversation(self) -> Conversation:
        """The model's context is shared between prompt and reply."""
        context, reply_tokens = self.served.context, self.settings.max_new_tokens
        if context is None:
            return Conversation(self.served.tokenizer, self.variant.wording, reply_tokens=reply_tokens)
        reply_tokens = min(reply_tokens, context // 2)
        room = context - reply_tokens + 1
        return Conversation(
            self.served.tokenizer,
            self.variant.wording,
            room=Room(room, f"the model's context of {context} has room for {room} beside a reply"),
            reply_tokens=reply_tokens,
        )

    def _begin_anew(self, _: str) -> None:
        self.conversation = self._new_conversation()

    def _change_budget(self, size: str) -> None:
        if not size:
            raise UserError("/budget: give a size: 8, 25% or 4GiB")
        resize(self.served.evaluated.model, size)
        engine = self.served.engine
        assert engine is not None
        slots, experts = engine.budget.capacity, engine.layers[0].num_experts
        self.console.print(f"{slots} of {experts} experts a layer, {_mb(engine.memory.total_bytes)}, cold")

    def _change_adapter(self, name: str) -> None:
        """A conversation goes on where both are asked in the same words."""
        base, *adapters = self.served.variants
        choices = {"off": base} | ({"on": adapters[-1]} if adapters else {})
        chosen = choices.get(name, name)
        if chosen not in self.served.variants:
            raise unknown_name("adapter", name, [*choices, *self.served.variants])
        before, self.variant = self.variant, self.served.variants[chosen]
        self.console.print(f"{self.variant.name} replies from now on")
        if before.wording != self.variant.wording:
            self.console.print("it is asked in other words: a new conversation begins")
            self._begin_anew("")

    def _show_statistics(self, _: str) -> None:
        engine = self.served.engine
        if engine is None:
            raise UserError("all experts are in memory: there is no cache (--expert_budget)")
        resident = sum(int(engine.resident(layer.index).sum()) for layer in engine.layers)
        self.console.print(
            f"budget {engine.settings.expert_budget}: {engine.budget.capacity} of "
            f"{engine.layers[0].num_experts} experts a layer, {_mb(engine.memory.total_bytes)}; "
            f"resident now: {resident}"
        )
        self.console.print(_table(engine.statistics.prefill, engine.statistics.decode))


class _Reply:
    """A reply while it is written, with its figures: as much of its end as the terminal has lines for, and
    all of it once it is written.
    """

    def __init__(self, served: ServedModel, variant: Variant) -> None:
        self.text, self.note = "", ""
        self.is_written = False
        self._served, self._variant = served, variant
        self._log = AnswerLog(variant.name, Figures(served.engine, lambda _: None), perf_counter())
        self._before = self._decode_counts()
        self._stream = DecodeStream([], skip_special_tokens=True)
        self._prompt_seen = False

    def write(self, prompt: list[int], config: GenerationConfig) -> None:
        """Runs the model to the end of the reply."""
        ids = torch.tensor([prompt])
        self._log.begin(len(prompt))
        with self._served.as_variant(self._variant, lambda: None):
            run_model(
                self._served.evaluated,
                ids,
                torch.ones_like(ids),
                generation_config=config,
                streamer=self,
            )

    def put(self, value: Tensor) -> None:
        """Called by `generate` with the prompt, then with each token."""
        if self._prompt_seen:
            for token in value.tolist():
                piece = self._stream.step(self._served.tokenizer._tokenizer, token) or ""
                self._log.add(piece)
                self.text += piece
        self._prompt_seen = True

    def end(self) -> None:
        """Called by `generate` after the last token."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What the terminal shows now."""
        text, figures = (
            console.render_lines(part, options, pad=False)
            for part in (self._shown_text(), Text(f"[{self.note}{self._figures()}]", style="dim"))
        )
        room = len(text) if self.is_written else max(1, options.size.height - len(figures))
        yield Segments(segment for line in [*text[-room:], *figures] for segment in (*line, Segment.line()))

    def _shown_text(self) -> Text:
        return Text(self.text.lstrip().translate(OBEYED))

    def _decode_counts(self) -> PhaseCounts | None:
        engine = self._served.engine
        return dataclasses.replace(engine.statistics.decode) if engine else None

    def _figures(self) -> str:
        seconds = self._log.seconds
        if len(seconds) < 2:
            return "reading the prompt" if not seconds else f"first token {seconds[0]:.2f} s"
        rate = (len(seconds) - 1) / (seconds[-1] - seconds[0])
        found = f"{len(seconds)} tokens, first {seconds[0]:.2f} s, then {rate:.1f} a second"
        return f"{found}{self._cache_figures()}"

    def _cache_figures(self) -> str:
        now, before = self._decode_counts(), self._before
        if now is None or before is None or now.tokens == before.tokens:
            return ""
        hits, rams, loads = (
            getattr(now, name) - getattr(before, name) for name in ("device_hits", "ram_hits", "disk_loads")
        )
        tokens, nbytes = now.tokens - before.tokens, now.disk_bytes - before.disk_bytes
        waited = 1e3 * (now.stall_seconds - before.stall_seconds) / tokens
        rate = hits / max(1, hits + rams + loads)
        return f", hit rate {rate:.3f}, {_mb(nbytes / tokens)} read and {waited:.1f} ms waited a token"


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:.1f} MB"


def _table(prefill: PhaseCounts, decode: PhaseCounts) -> Table:
    """The counts of both phases."""
    table = Table("", "prefill", "decode")
    for name in ("tokens", "device_hits", "ram_hits", "disk_loads", "device_hit_rate", "stall_seconds"):
        values = (getattr(phase, name) for phase in (prefill, decode))
        table.add_row(name.replace("_", " "), *(f"{value:.3f}".removesuffix(".000") for value in values))
    table.add_row("read", _mb(prefill.disk_bytes), _mb(decode.disk_bytes))
    return table
