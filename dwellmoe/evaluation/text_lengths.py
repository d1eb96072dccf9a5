"""How many measured texts were cut, and how many go beyond the model's context."""

from collections.abc import Sequence
from dataclasses import dataclass

from dwellmoe.data.context import check_context, context_tokens
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.measure import Workload
from dwellmoe.evaluation.requests import Request


@dataclass(frozen=True)
class TextLengths:
    """Counts of texts; a long text is cut to `--max_words_len`, a prompt at its beginning, an answer at its
    end.
    """

    cut_prompts: int
    """Of those that are scored with their reference answer."""
    cut_answers: int
    cut_generation_prompts: int
    """Of those to which an answer is generated."""
    cut_choices: int
    """Wrong choices that are ranked, of which prompt or answer was cut."""
    beyond_context: int
    """Scored texts, and prompts with their answer to come, that are longer than the model's context."""

    def remark(self, row_tokens: int) -> str:
        """What was cut, in one line; empty where nothing was."""
        counts = {
            "scored prompts": self.cut_prompts,
            "reference answers": self.cut_answers,
            "prompts of generated answers": self.cut_generation_prompts,
            "ranked choices": self.cut_choices,
        }
        cut = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"cut to {row_tokens} tokens (--max_words_len): {cut}" if cut else ""


def text_lengths(
    requests: Sequence[Request], work: Workload, evaluated: EvaluatedModel, allow_beyond_context: bool
) -> TextLengths:
    """The counts. Raises UserError for texts beyond the model's context, unless they are allowed."""
    context = context_tokens(evaluated.model.config)
    scored = [len(request.row["input_ids"]) for request in requests]
    answered = [request for batch in work.generated for request in batch]
    # The last token of an answer is never run.
    generated = [len(request.prompt_ids) + work.max_new_tokens - 1 for request in answered]
    if work.free_running:
        generated += [len(request.prompt_ids) + work.free_running.tokens for request in answered]
    choices = [choice.row for batch in work.choices for choice in batch]
    return TextLengths(
        cut_prompts=sum(request.row["cut_prompt_tokens"] > 0 for request in requests),
        cut_answers=sum(request.row["cut_answer_tokens"] > 0 for request in requests),
        cut_generation_prompts=sum(request.cut_prompt_tokens > 0 for request in answered),
        cut_choices=sum(row["cut_prompt_tokens"] + row["cut_answer_tokens"] > 0 for row in choices),
        beyond_context=check_context("scored texts", scored, context, allow_beyond_context)
        + check_context("prompts with their answers", generated, context, allow_beyond_context),
    )
