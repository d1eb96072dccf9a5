"""Settings of evaluation: what is measured, on how much text, with which cache."""

from dataclasses import dataclass

from dwellmoe.errors import UserError
from dwellmoe.offload.settings import EngineSettings
from dwellmoe.options import check_at_least, check_choice, option


@dataclass
class EvaluationSettings:
    """What is measured of a trained model, on how much, and where the report goes."""

    control_path: str | None = option(None, "adapter trained alike but without locality, reported as control")
    split: str = option("test", "what is measured on: test, validation or train")
    limit_evaluation: int | None = option(
        None, "measure on a seeded sample of so many requests; 0 is all [256; of a benchmark all]"
    )
    limit: int | None = option(None, "measure on so many requests in their order instead; each is answered")
    limit_start: int | None = option(None, "the first of them, counted from 0; alone: all from there on")
    task_num: int | None = option(None, "answer this request alone, counted from 0, and print the answer")
    input: str | None = option(None, "answer this prompt of your own and print the answer")
    use_chat_template: str = option(
        "auto", "ask through the model's chat template: on, off; auto: for the tasks that say so"
    )
    allow_unsafe_code: bool = option(
        False, "run generated programs even where the machine cannot isolate them: at your own risk"
    )
    generate_limit: int | None = option(
        None, "generate answers to so many of them; 0 is none [24; of a benchmark all]"
    )
    choice_limit: int = option(64, "rank the choices of so many of them by likelihood; 0 is none")
    max_new_tokens: int | None = option(
        None, "tokens a generated answer may have [48; of a benchmark what its answers need]"
    )
    eval_batch_size: int = option(16, "requests that run together on one rank")
    policies: str = option("lru,lfu,opt,lopt:horizon=2", "eviction policies whose hit rates are reported")
    device_profile: str = option("configs/devices/cfmoe_cpu.toml", "memory and bandwidths of a device")
    results_dir: str | None = option(
        None, "folder of the report; default: ./results{model_key}/<data>-<adapters>"
    )
    json: str | None = option(None, "also write the report to this file; - is standard output")
    bootstrap_samples: int = option(2000, "resamples of the requests behind each 95 % interval")
    temperature: float = option(0.0, "of the replies in a chat; 0 takes the likeliest token each time")
    chat_mode: bool = option(False, "talk to the model; each reply shows its ECR and its LRU hit rate")

    def __post_init__(self):
        check_choice("split", self.split, ("train", "validation", "test"))
        check_choice("use_chat_template", self.use_chat_template, ("auto", "on", "off"))
        least = dict.fromkeys(
            ("limit_evaluation", "limit_start", "task_num", "generate_limit", "choice_limit"), 0
        )
        least |= dict.fromkeys(("limit", "max_new_tokens", "eval_batch_size", "bootstrap_samples"), 1)
        for name, bound in least.items():
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), bound)
        check_at_least("temperature", self.temperature, 0)
        self._check_single()

    def _check_single(self):
        single = [name for name in ("task_num", "input") if getattr(self, name) is not None]
        many = ("limit", "limit_start", "limit_evaluation", "generate_limit")
        others = single[1:] + [name for name in many if getattr(self, name) is not None]
        if single and others:
            raise UserError(f"--{single[0]} asks for one answer: leave out --{others[0]}")


@dataclass
class CacheSettings(EngineSettings):
    """How large the memory for experts is, who stays in it, and whether the router heeds it."""

    expert_budget: str = option(
        "",
        "run with the experts in a cache of this size: slots a layer (8), percent (25%), or bytes (6GiB, "
        "buffers included); empty: all in memory. With --routing_strategy it is simulated, 25% by default, "
        "unless --reroute_live",
    )
    routing_strategy: str | None = option(
        None, "also measure with re-routing by name:option=value,... of routing/strategies/, e.g. margin"
    )
    reroute_prefill: bool = option(False, "re-route prompt tokens too, not only decoded ones")
    reroute_live: bool = option(
        False,
        "re-route by what an offloading engine of --expert_budget truly holds, which runs the model then "
        "(--chat_mode, --input, --task_num); False: by what a simulated cache would hold",
    )
