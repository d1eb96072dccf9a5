"""Chat templates of the kinds that models have, and a tokenizer whose tokens reach over their seams."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<eos>", "<|im_start|>", "<|im_end|>", "<|return|>")
_HEAD = "<|im_start|>{{ m['role'] }}\n"
_REPLY = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = "{% for m in messages %}" + _HEAD + "{{ m['content'] }}<|im_end|>\n{% endfor %}" + _REPLY
TRIMMED = PLAIN.replace("m['content']", "m['content'] | trim")
MARKED = (
    "{% for m in messages %}"
    + _HEAD
    + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}" + _REPLY
)
ENDS_OTHERWISE = PLAIN.replace(
    "<|im_end|>",
    "{% if loop.last and m['role'] == 'assistant' %}<|return|>{% else %}<|im_end|>{% endif %}",
)
DROPS_REASONING = PLAIN.replace(
    "m['content']", "m['content'] if loop.last else m['content'].split('</think>')[-1]"
)
SYSTEM_LAST = (
    "{% for m in messages if m['role'] != 'system' %}{% if loop.last %}"
    "{% for s in messages if s['role'] == 'system' %}{{ s['content'] }}\n{% endfor %}{% endif %}"
    + _HEAD
    + "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    + _REPLY
)
NEWEST_FIRST = PLAIN.replace("in messages", "in messages | reverse")
USERS_ONLY = PLAIN.replace("in messages", "in messages if m['role'] != 'tool'")
NO_END = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def byte_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """A byte a token, but for pairs that merge across the seams of a template: line ends, `: `, ` a`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), (":", "Ġ"), ("Ġ", "a")]
    vocabulary = {token: n for n, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def turns(*texts: str) -> list[dict]:
    """Turns of the user and the assistant, one after the other."""
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def write_chats(folder: Path, *chats: list, name: str = "talk.jsonl") -> str:
    """A file of chats as OpenAI has them."""
    path = folder / name
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return str(path)
