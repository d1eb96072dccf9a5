"""Settings of evaluation: what is measured, on which requests, with which cache."""

from dataclasses import dataclass

from dwellmoe.errors import UserError
from dwellmoe.offload.settings import EngineSettings
from dwellmoe.options import check_at_least, check_choice, option


@dataclass
class EvaluationSettings:
    """What is measured of a model, on which requests, and where the report is written."""

    control_path: str | None = option(
        None, "adapter trained in the same way but without a locality objective, reported as control"
    )
    split: str = option("test", "split of the data set that is measured: test, validation or train")
    limit_evaluation: int | None = option(
        None, "size of the seeded sample of requests that is measured; 0: all [256; for a benchmark all]"
    )
    limit: int | None = option(
        None, "measure the first requests instead of a sample, this many, with a generated answer to each"
    )
    limit_start: int | None = option(
        None, "first request of --limit, counted from 0; without --limit: all requests from there on"
    )
    task_num: int | None = option(None, "answer only this request, counted from 0, and print the answer")
    input: str | None = option(None, "answer this prompt and print the answer")
    use_chat_template: str = option(
        "auto", "use the model's chat template for prompts: on, off; auto: for the tasks that request it"
    )
    allow_unsafe_code: bool = option(
        False, "run generated programs even if this machine cannot isolate them: at your own risk"
    )
    generate_limit: int | None = option(
        None, "requests to which an answer is generated; 0: none [24; for a benchmark all]"
    )
    choice_limit: int = option(64, "multiple-choice requests whose choices are ranked by likelihood; 0: none")
    max_new_tokens: int | None = option(
        None, "most tokens of a generated answer [48; for a benchmark what its answers need]"
    )
    eval_batch_size: int = option(16, "requests in one batch of one rank")
    policies: str = option("lru,lfu,opt,lopt:horizon=2", "eviction policies whose hit rates are reported")
    device_profile: str = option(
        "configs/devices/cfmoe_cpu.toml",
        "TOML file with the memory and bandwidths of a device, for its speed",
    )
    results_dir: str | None = option(None, "folder of the report [./results{model_key}/<data>-<adapters>]")
    json: str | None = option(None, "also write the report to this JSON file; -: standard output")
    bootstrap_samples: int = option(2000, "bootstrap resamples of the requests for each 95 % interval")
    temperature: float = option(0.0, "sampling temperature of a chat; 0: always the likeliest token")
    chat_mode: bool = option(False, "chat with the model; each reply shows its ECR and its LRU hit rate")

    def __post_init__(self):
        check_choice("split", self.split, ("train", "validation", "test"))
        check_choice("use_chat_template", self.use_chat_template, ("auto", "on", "off"))
        from_zero = ("limit_evaluation", "limit_start", "task_num", "generate_limit", "choice_limit")
        from_one = ("limit", "max_new_tokens", "eval_batch_size", "bootstrap_samples")
        for name, bound in (dict.fromkeys(from_zero, 0) | dict.fromkeys(from_one, 1)).items():
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), bound)
        check_at_least("temperature", self.temperature, 0)
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
