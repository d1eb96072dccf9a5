"""Examples as rows of tokens with masked prompts, kept on disk.

A row is `[BOS] prompt answer EOS`, at most `max_tokens` long. Too long a prompt loses its beginning, never
the answer; running text (an empty prompt) is cut into windows, so that nothing of it is lost.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, load_from_disk

from dwellmoe.data.collate import IGNORED_LABEL
from dwellmoe.data.download_cache import build_once, cache_folder, digest
from dwellmoe.data.examples import Example, fetch_for, load_examples, seeded_sample
from dwellmoe.data.fingerprint import task_identity, tokenizer_identity
from dwellmoe.data.task import Task, check_split
from dwellmoe.data.wording import as_messages, beginning
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

SCHEME = 2
"""Part of the cache key: raised when a row comes to mean something else."""
BATCH_EXAMPLES = 1000
"""Examples encoded at a time; fewer need no progress bar."""
Row = dict[str, Any]
_FEATURES = Features(
    {"input_ids": List(Value("int32")), "labels": List(Value("int32"))}
    | dict.fromkeys(("prompt_tokens", "cut_prompt_tokens", "cut_answer_tokens"), Value("int32"))
)


@dataclass(frozen=True)
class CutCounts:
    """How many rows there are, how many prompts lost their beginning and how many answers their end."""

    rows: int
    cut_prompts: int
    cut_answers: int


def tokenise_split(
    task: Task,
    split: str,
    tokenizer: Any,
    max_tokens: int,
    *,
    limit: int | None = None,
    seed: int = 0,
    mix_available_only: bool = False,
) -> Dataset:
    """Rows of one split, from the cache on disk if the same were made before; only else is anything fetched.

    `task` as `as_asked` gives it: with `task.chat` the prompts are messages in the tokenizer's chat template.

    Columns: `input_ids` and `labels` [T] (-100 on the prompt and on the first token, which nothing predicts),
    `prompt_tokens` (leading tokens that are prompt, BOS included), `cut_prompt_tokens`, `cut_answer_tokens`.
    `limit` keeps a sample of that many examples drawn by `seed`; `mix_available_only` lets a mix go without
    members that are out of reach. Any number of ranks may call this at once. UserError as of `load_examples`.
    """
    if max_tokens < 2:
        raise UserError(f"max_words_len = {max_tokens}: an example needs at least 2 tokens")
    check_end_token(tokenizer)
    if limit is not None and limit < 1:
        raise UserError(f"limit = {limit}: at least 1 example is needed")
    check_split(split)
    settings = [SCHEME, split, max_tokens, limit, seed, mix_available_only]
    settings += [tokenizer.chat_template] if task.chat else []

    def name() -> str:
        key = digest([task_identity(task, split), tokenizer_identity(tokenizer), settings])
        return f"{task.name}-{split}-{key}"

    def build(folder: Path) -> None:
        examples = load_examples(task, split, seed=seed, mix_available_only=mix_available_only)
        if not examples:
            raise UserError(f"{task.name}: the split '{split}' is empty")
        examples = seeded_sample(examples, limit, seed)
        examples = as_messages(examples, tokenizer) if task.chat else examples
        encode_examples(examples, tokenizer, max_tokens).save_to_disk(folder)

    if not (cache_folder() / "tokenised" / name()).exists():
        fetch_for(task, split)  # what is fetched may be another source, which makes another name
    rows = load_from_disk(build_once("tokenised", name(), build))
    assert isinstance(rows, Dataset)
    _report_cuts(f"{task.name}, {split}", cut_counts(rows), max_tokens)
    return rows


def rows_name(rows: Dataset) -> str:
    """The name of a split's rows in the cache, which their content decides."""
    return Path(rows.cache_files[0]["filename"]).parent.name


def check_end_token(tokenizer: Any) -> None:
    """Raises UserError for a tokenizer without the token that ends an answer."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of '{tokenizer.name_or_path}' has no end-of-text token")


def encode_examples(examples: list[Example], tokenizer: Any, max_tokens: int) -> Dataset:
    """Rows of the examples, in their order and with the columns of `tokenise_split`; nothing is cached."""
    texts = {"prompt": [e.prompt for e in examples], "answer": [e.answer for e in examples]}
    begin = beginning(tokenizer)

    def encode(batch: dict[str, list[str]]) -> dict[str, list]:
        prompts = token_ids(tokenizer, batch["prompt"])
        answers = token_ids(tokenizer, batch["answer"])
        rows_of = [
            [*_rows(begin, prompt, [*answer, tokenizer.eos_token_id], max_tokens)]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        if empty := rows_of.count([]):
            warn_once(f"{empty} empty texts are left out: nothing in them could be predicted")
        rows = [row for rows in rows_of for row in rows]
        return {name: [row[name] for row in rows] for name in _FEATURES}

    if len(examples) <= BATCH_EXAMPLES:
        return Dataset.from_dict(encode(texts), features=_FEATURES)
    # The fingerprint is given because hashing the tokenizer for one is slow and the key above has done it.
    return Dataset.from_dict(texts).map(
        encode,
        batched=True,
        batch_size=BATCH_EXAMPLES,
        remove_columns=list(texts),
        features=_FEATURES,
        desc="tokenise",
        new_fingerprint="rows",
    )


def token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Each text's tokens and nothing added; without a warning about long texts, since they are cut here."""
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def cut_counts(rows: Dataset) -> CutCounts:
    """What truncation took from these rows, counted."""
    prompts, answers = (sum(n > 0 for n in rows[f"cut_{part}_tokens"]) for part in ("prompt", "answer"))
    return CutCounts(len(rows), prompts, answers)


def _rows(begin: list[int], prompt: list[int], answer: list[int], max_tokens: int) -> Iterator[Row]:
    room = max_tokens - len(begin)
    if prompt:
        kept_answer = answer[:room]
        first = max(0, len(prompt) - (room - len(kept_answer)))
        yield _row(begin + prompt[first:], kept_answer, first, len(answer) - len(kept_answer))
    else:
        for window in _windows(answer, room, least=2 - len(begin)):
            yield _row(begin, window, 0, 0)


def _windows(text: list[int], room: int, least: int) -> Iterator[list[int]]:
    """Running text in pieces of `room` tokens. A last piece below `least`, in which nothing is predicted,
    begins a token earlier: that token is only its context. A text below `least` gives none.
    """
    if len(text) < least:
        return
    for start in range(0, len(text), room):
        yield text[min(start, len(text) - least) : start + room]


def _row(prompt: list[int], answer: list[int], cut_prompt_tokens: int, cut_answer_tokens: int) -> Row:
    masked = max(1, len(prompt))
    ids = prompt + answer
    return {
        "input_ids": ids,
        "labels": [IGNORED_LABEL] * masked + ids[masked:],
        "prompt_tokens": len(prompt),
        "cut_prompt_tokens": cut_prompt_tokens,
        "cut_answer_tokens": cut_answer_tokens,
    }


def _report_cuts(where: str, counts: CutCounts, max_tokens: int) -> None:
    warn_once(
        f"{where}: {counts.rows} rows of at most {max_tokens} tokens; "
        f"{counts.cut_prompts} prompts cut at their beginning, {counts.cut_answers} answers cut at their end"
    )
