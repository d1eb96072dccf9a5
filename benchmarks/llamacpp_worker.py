"""Runs a GGUF file with llama.cpp, in a process of its own: one JSON request a line, one JSON answer each.

It is started by the Python of an environment that holds llama-cpp-python, and imports nothing of this
project. benchmarks/llamacpp.py compares it with the engine.
"""

import argparse
import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as api  # type: ignore[import-not-found] - it is in another environment
import numpy as np
from process_reads import read_bytes

Answer = dict[str, Any]


class Tensor(ctypes.Structure):
    """The beginning of ggml's struct of a tensor."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("sizes", ctypes.c_int64 * 4),
        ("strides", ctypes.c_size_t * 4),
    ]


class RouterRecord:
    """The experts that routers chose, as llama.cpp computes them: {layer: [T, K]}."""

    NAME = "ffn_moe_topk-"

    def __init__(self) -> None:
        self.chosen: dict[int, list[list[int]]] = {}
        folder = Path(str(api.__file__)).parent / "lib"
        self._ggml = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
        self._ggml.ggml_get_name.restype = ctypes.c_char_p
        self._ggml.ggml_get_data.restype = ctypes.c_void_p
        self.callback = api.ggml_backend_sched_eval_callback(self._see)

    def _see(self, pointer: int, ask: bool, _data: object) -> bool:
        """Called before a tensor is computed, to ask whether it is wanted, and after that; True goes on."""
        address = ctypes.c_void_p(pointer)
        name = self._ggml.ggml_get_name(address).decode()
        is_wanted = name.startswith(self.NAME)
        if is_wanted and not ask:
            layer = int(name.removeprefix(self.NAME))
            self.chosen.setdefault(layer, []).extend(self._numbers(address))
        return is_wanted or not ask

    def _numbers(self, address: ctypes.c_void_p) -> list[list[int]]:
        tensor = ctypes.cast(address, ctypes.POINTER(Tensor)).contents
        experts, rows, stride = tensor.sizes[0], tensor.sizes[1], tensor.strides[1]
        begin = self._ggml.ggml_get_data(address)
        return [list((ctypes.c_int32 * experts).from_address(begin + row * stride)) for row in range(rows)]


class LlamaCpp:
    """A model and one context of llama.cpp, memory-mapped as by default.

    repack   whether weights may be copied into another order in memory; under a memory limit they may not:
             such copies cannot be dropped, as pages of the file can
    lora     GGUF adapter to put on; empty: none
    routing  whether `routing` will be asked for, which slows all else down
    """

    def __init__(self, path: str, threads: int, context: int, repack: bool, lora: str, routing: bool) -> None:
        api.llama_backend_init()
        of_model = api.llama_model_default_params()
        if hasattr(of_model, "use_extra_bufts"):
            of_model.use_extra_bufts = repack
        self.model = api.llama_model_load_from_file(path.encode(), of_model)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        of_context = api.llama_context_default_params()
        of_context.n_ctx = of_context.n_batch = context
        of_context.n_threads = of_context.n_threads_batch = threads
        if routing:
            self.router = RouterRecord()
            of_context.cb_eval = self.router.callback
        self.context = api.llama_init_from_model(self.model, of_context)
        if not self.context:
            raise SystemExit(f"llama.cpp makes no context for {path}")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        if lora:
            self._put_on(lora)

    def _put_on(self, lora: str) -> None:
        adapter: Any = api.llama_adapter_lora_init(self.model, lora.encode())
        kind: Any = type(adapter)  # of one adapter; times 1, of an array of one
        adapters, scales = (kind * 1)(adapter), (ctypes.c_float * 1)(1.0)
        if not adapter or api.llama_set_adapters_lora(self.context, adapters, 1, scales):
            raise SystemExit(f"llama.cpp does not load {lora}")

    def passes(self, prompt: list[int], tokens: list[int]) -> Answer:
        """Seconds of the prompt (to its first token) and of each further one, as in offload_worker.py."""
        self._forget()
        read_before = read_bytes()
        seconds = [self._timed(each) for each in (prompt, *([token] for token in tokens[:-1]))]
        return {
            "prefill_seconds": seconds[0],
            "decode_seconds": seconds[1:],
            "disk_bytes": read_bytes() - read_before,
        }

    def _forget(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self.context), True)

    def _timed(self, tokens: list[int]) -> float:
        began = time.perf_counter()
        self._decode(tokens)
        return time.perf_counter() - began

    def _decode(self, tokens: list[int]) -> None:
        """Runs tokens behind those that ran before, and waits for the last one's logits."""
        array = (api.llama_token * len(tokens))(*tokens)
        if status := api.llama_decode(self.context, api.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError(f"llama_decode: {status}")
        api.llama_synchronize(self.context)

    def logits(self, tokens: list[int]) -> np.ndarray:
        """[T, vocabulary], of a text from its beginning."""
        self._forget()
        batch = api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for position, token in enumerate(tokens):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
            batch.logits[position] = True
        status = api.llama_decode(self.context, batch)
        api.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        found = api.llama_get_logits(self.context)
        return np.ctypeslib.as_array(found, (len(tokens), self.vocabulary)).copy()

    def losses(self, tokens: list[int]) -> Answer:
        """The negative log-likelihood of each token but the first, and the likeliest token after each."""
        logits_TV = self.logits(tokens).astype(np.float64)
        logits_TV -= logits_TV.max(axis=1, keepdims=True)
        log_sums_T = np.log(np.exp(logits_TV).sum(axis=1))
        chosen_T = logits_TV[np.arange(len(tokens) - 1), tokens[1:]]
        return {
            "losses": (log_sums_T[:-1] - chosen_T).tolist(),
            "likeliest": logits_TV.argmax(axis=1).tolist(),
        }

    def routing(self, tokens: list[int]) -> Answer:
        """The experts that each layer chooses for each token of a text: {layer: [T, K]}."""
        self.router.chosen.clear()
        self.logits(tokens)
        return {"experts": self.router.chosen}

    def tokenise(self, text: str) -> Answer:
        """The tokens of a text by the file's own tokenizer."""
        vocabulary = api.llama_model_get_vocab(self.model)
        encoded = text.encode()
        tokens = (api.llama_token * (len(encoded) + 8))()
        count = api.llama_tokenize(vocabulary, encoded, len(encoded), tokens, len(tokens), False, False)
        return {"tokens": list(tokens[:count])}


def quantise(source: str, target: str, kind: str, threads: int) -> None:
    """Writes a GGUF in another type: `Q4_0`, `Q8_0`, as llama-quantize does."""
    options = api.llama_model_quantize_default_params()
    options.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.nthread = threads
    if status := api.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)):
        raise SystemExit(f"llama.cpp does not write {target}: {status}")


def serve(args: argparse.Namespace) -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print
    runner = LlamaCpp(args.model, args.threads, args.context, args.repack == "yes", args.lora, args.routing)
    print(json.dumps({"ready": True, "threads": args.threads}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(runner, request.pop("do"))(**request)), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--repack", choices=("yes", "no"), default="yes")
    parser.add_argument("--lora", default="", help="GGUF adapter to put on")
    parser.add_argument("--routing", action="store_true", help="be able to record the chosen experts")
    parser.add_argument("--quantise_to", help="write the file in another type here, and end")
    parser.add_argument("--kind", default="Q4_0", help="that type")
    args = parser.parse_args()
    if args.quantise_to:
        quantise(args.model, args.quantise_to, args.kind, args.threads)
    else:
        serve(args)


if __name__ == "__main__":
    main()
