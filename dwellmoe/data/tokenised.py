"""Examples as rows of tokens with masked prompts, kept on disk.

A row is `[BOS] prompt answer EOS`, at most `max_tokens` long. Too long a prompt loses its beginning, never
the answer; running text (an empty prompt) is cut into windows, so that nothing of it is lost. A conversation
is a row with several answers; one that is too long loses its end, after its first answer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, load_from_disk

from dwellmoe.data.chat_template import beginning
from dwellmoe.data.collate import IGNORED_LABEL
from dwellmoe.data.conversations import Rendered
from dwellmoe.data.download_cache import build_once, cache_folder, digest
from dwellmoe.data.examples import Example, fetch_for, load_examples, seeded_sample
from dwellmoe.data.fingerprint import task_identity, tokenizer_identity
from dwellmoe.data.task import Task, check_split
from dwellmoe.data.wording import worded_examples
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

SCHEME = 2
"""Part of the cache key: raised when a row comes to mean something else."""
BATCH_EXAMPLES = 1000
"""Examples encoded at a time; fewer need no progress bar."""
Row = dict[str, Any]
Columns = dict[str, list]
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
        examples = worded_examples(task, examples, tokenizer)
        encode_examples(examples, tokenizer, max_tokens).save_to_disk(folder)

    if not (cache_folder() / "tokenised" / name()).exists():
        fetch_for(task, split)  # what is fetched may be another source, which makes another name
    rows = load_from_disk(build_once("tokenised", name(), build))
    assert isinstance(rows, Dataset)
    _report_cuts(f"{task.name}, {split}", rows, max_tokens, task.of_conversations)
    return rows


def rows_name(rows: Dataset) -> str:
    """The name of a split's rows in the cache, which their content decides."""
    return Path(rows.cache_files[0]["filename"]).parent.name


def check_end_token(tokenizer: Any) -> None:
    """Raises UserError for a tokenizer without the token that ends an answer."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of '{tokenizer.name_or_path}' has no end-of-text token")


def encode_examples(examples: list[Example], tokenizer: Any, max_tokens: int) -> Dataset:
    """Rows of the examples, in their order and with the columns of `tokenise_split`; nothing is cached.

    The examples of one data set are all conversations (`rendered`), or none is.
    """
    if examples and examples[0].rendered:
        return _encode_conversations([e.rendered for e in examples if e.rendered], tokenizer, max_tokens)
    texts = {"prompt": [e.prompt for e in examples], "answer": [e.answer for e in examples]}
    begin = beginning(tokenizer)

    def encode(batch: Columns) -> Columns:
        prompts = token_ids(tokenizer, batch["prompt"])
        answers = token_ids(tokenizer, batch["answer"])
        rows_of = [
            [*_rows(begin, prompt, [*answer, tokenizer.eos_token_id], max_tokens)]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        if empty := rows_of.count([]):
            warn_once(f"{empty} empty texts are left out: nothing in them could be predicted")
        return _columns([row for rows in rows_of for row in rows])

    return _encoded(texts, encode)


def _encode_conversations(conversations: list[Rendered], tokenizer: Any, max_tokens: int) -> Dataset:
    columns = {name: [getattr(each, name) for each in conversations] for name in ("text", "spans", "ended")}

    def encode(batch: Columns) -> Columns:
        rendered = (
            Rendered(*each) for each in zip(batch["text"], batch["spans"], batch["ended"], strict=True)
        )
        return _columns([_conversation_row(each, tokenizer, max_tokens) for each in rendered])

    return _encoded(columns, encode)


def _columns(rows: list[Row]) -> Columns:
    return {name: [row[name] for row in rows] for name in _FEATURES}


def _encoded(texts: Columns, encode: Callable[[Columns], Columns]) -> Dataset:
    if len(next(iter(texts.values()))) <= BATCH_EXAMPLES:
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


def turn_tokens(rendered: Rendered, tokenizer: Any) -> list[list[int]]:
    """The tokens of a conversation in pieces, which are given and learned by turns.

    They are those of the whole text. Where a token of it would reach over the beginning or the end of an
    answer, each piece is tokenised by itself, as a prompt is when a model is asked.
    """
    pieces = token_ids(tokenizer, rendered.pieces)
    (whole,) = token_ids(tokenizer, [rendered.text])
    if [*chain(*pieces)] != whole:
        prefixes = token_ids(tokenizer, [rendered.text[:cut] for cut in rendered.cuts])
        if all(whole[: len(prefix)] == prefix for prefix in prefixes):
            cuts = [0, *map(len, prefixes), len(whole)]
            pieces = [whole[start:stop] for start, stop in pairwise(cuts)]
    first, *others, last = pieces
    end = [] if rendered.ended else [tokenizer.eos_token_id]
    others += [last, end] if last else []
    others[-1] = others[-1] + ([] if last else end)
    return [beginning(tokenizer) + first, *others]


def last_answer_row(rendered: Rendered, tokenizer: Any, max_tokens: int) -> tuple[Row, list[int]]:
    """A conversation as a row of which only the last answer is learned, and all tokens before that answer."""
    pieces = turn_tokens(rendered, tokenizer)
    last = 2 * len(rendered.spans) - 1
    prompt = [*chain(*pieces[:last])]
    return _prompted_row(beginning(tokenizer), prompt, pieces[last], max_tokens), prompt


def _conversation_row(rendered: Rendered, tokenizer: Any, max_tokens: int) -> Row:
    pieces = turn_tokens(rendered, tokenizer)
    prompt, answer, *later = pieces
    if len(prompt) + len(answer) > max_tokens:
        row = _prompted_row(beginning(tokenizer), prompt, answer, max_tokens)
        return row | {"cut_answer_tokens": row["cut_answer_tokens"] + sum(map(len, later[1::2]))}
    learned = [number % 2 == 1 for number, piece in enumerate(pieces) for _ in piece]
    learned[0] = False
    labelled = [*zip(chain(*pieces), learned, strict=True)]
    return {
        "input_ids": [token for token, _ in labelled[:max_tokens]],
        "labels": [token if counts else IGNORED_LABEL for token, counts in labelled[:max_tokens]],
        "prompt_tokens": len(prompt),
        "cut_prompt_tokens": 0,
        "cut_answer_tokens": sum(learned[max_tokens:]),
    }


def _rows(begin: list[int], prompt: list[int], answer: list[int], max_tokens: int) -> Iterator[Row]:
    room = max_tokens - len(begin)
    if prompt:
        yield _prompted_row(begin, begin + prompt, answer, max_tokens)
    else:
        for window in _windows(answer, room, least=2 - len(begin)):
            yield _row(begin, window, 0, 0)


def _prompted_row(begin: list[int], prompt: list[int], answer: list[int], max_tokens: int) -> Row:
    """A prompt (with what the tokenizer puts before it) and its answer, of which as much is kept as fits."""
    room = max_tokens - len(begin)
    kept_answer = answer[:room]
    rest = prompt[len(begin) :]
    first = max(0, len(rest) - (room - len(kept_answer)))
    return _row(begin + rest[first:], kept_answer, first, len(answer) - len(kept_answer))


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


def _report_cuts(where: str, rows: Dataset, max_tokens: int, conversations: bool) -> None:
    counts = cut_counts(rows)
    answers = f"{counts.cut_answers} answers cut at their end"
    if conversations:
        lost = sum(rows["cut_answer_tokens"])
        answers = f"{counts.cut_answers} conversations cut at their end, with {lost:,} tokens of answers"
    warn_once(
        f"{where}: {counts.rows} rows of at most {max_tokens} tokens; "
        f"{counts.cut_prompts} prompts cut at their beginning, {answers}"
    )
