"""Settings of evaluation: what is measured, on which requests, with which cache."""

from dataclasses import dataclass

from dwellmoe.errors import UserError
from dwellmoe.options import COUNT, Settings, option
from dwellmoe.settings.engine import EngineSettings


@dataclass
class EvaluationSettings(Settings):
    """What is measured of a model, on which requests, and where the report is written."""

    control_path: str | None = option(
        None, "adapter trained in the same way but without a locality objective, reported as control"
    )
    split: str = option(
        "test",
        "split of the data set that is measured: test, validation or train",
        choices=("test", "validation", "train"),
    )
    limit_evaluation: int | None = option(
        None,
        "size of the seeded sample of requests that is measured; 0: all [256; for a benchmark all]",
        least=0,
        most=COUNT,
    )
    limit: int | None = option(
        None,
        "measure the first requests instead of a sample, this many, with a generated answer to each",
        least=1,
        most=COUNT,
    )
    limit_start: int | None = option(
        None,
        "first request of --limit, counted from 0; without --limit: all requests from there on",
        least=0,
        most=COUNT,
    )
    task_num: int | None = option(
        None,
        "answer only this request, counted from 0, and print the answer",
        least=0,
        most=COUNT,
    )
    input: str | None = option(None, "answer this prompt and print the answer")
    allow_unsafe_code: bool = option(
        False, "run generated programs even if this machine cannot isolate them: at your own risk"
    )
    generate_limit: int | None = option(
        None,
        "requests to which an answer is generated; 0: none [24; for a benchmark all]",
        least=0,
        most=COUNT,
    )
    choice_limit: int = option(
        64,
        "multiple-choice requests whose choices are ranked by likelihood; 0: none",
        least=0,
        most=COUNT,
    )
    max_new_tokens: int | None = option(
        None,
        "most tokens of a generated answer [48; for a benchmark what its answers need]",
        least=1,
        most=2**20,
    )
    eval_batch_size: int = option(
        16,
        "requests in one batch of one rank",
        least=1,
        most=65_536,
    )
    policies: str = option("lru,lfu,opt,lopt:horizon=2", "eviction policies whose hit rates are reported")
    device_profile: str = option(
        "configs/devices/cfmoe_cpu.toml",
        "TOML file with the memory and bandwidths of a device, for its speed",
    )
    resume: bool = option(
        False,
        "go on with an evaluation of the same settings that was stopped, with the batches that it measured",
    )
    results_dir: str | None = option(None, "folder of the report [./results{model_key}/<data>-<adapters>]")
    json: str | None = option(None, "also write the report to this JSON file; -: standard output")
    bootstrap_samples: int = option(
        2000,
        "bootstrap resamples of the requests for each 95 % interval",
        least=1,
        most=100_000,
    )
    free_running: int | None = option(
        None,
        "with --routing_strategy: after each prompt of --generate_limit also have every variant write this "
        "many tokens by itself, re-routed, so that errors feed back, and score that text",
        least=2,
        most=2**20,
    )
    temperature: float | None = option(
        None,
        "sampling temperature of a chat [0] and of --free_running [1, with --seed]; 0: always the likeliest "
        "token",
        least=0,
        most=100,
    )
    chat_mode: bool = option(False, "chat with the model; each reply shows its ECR and its LRU hit rate")

    def __post_init__(self):
        super().__post_init__()
        self._check_single()

    def _check_single(self):
        single = [name for name in ("task_num", "input") if getattr(self, name) is not None]
        many = ("limit", "limit_start", "limit_evaluation", "generate_limit")
        others = single[1:] + [name for name in many if getattr(self, name) is not None]
        if single and others:
            raise UserError(f"--{single[0]} is for a single answer: leave out --{others[0]}")


@dataclass
class CacheSettings(EngineSettings):
    """The size of the memory for experts, the policy that evicts from it, and re-routing by what it holds."""

    expert_budget: str = option(
        "",
        "run with the experts in a cache of this size: slots a layer (8), percent (25%), or bytes (6GiB, "
        "buffers included); empty: all experts in memory. With --routing_strategy the cache is only "
        "simulated [then 25%], unless --reroute_live is given",
    )
    routing_strategy: str | None = option(
        None, "also measure with re-routing by this strategy (name:option=value,...), e.g. margin"
    )
    reroute_prefill: bool = option(False, "also re-route prompt tokens, not only decoded ones")
    reroute_live: bool = option(
        False,
        "re-route by what the offloading engine of --expert_budget holds, which then runs the model (only "
        "with --chat_mode, --input or --task_num); False: by what a simulated cache holds",
    )
