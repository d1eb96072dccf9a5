"""Settings of `dwellmoe lm-eval`: those of the harness by its own names, and where results are written."""

from dataclasses import dataclass

from dwellmoe.options import COUNT, SEED, Settings, option


@dataclass
class HarnessSettings(Settings):
    """Which tasks of the harness are run, and how."""

    tasks: str = option("", "comma list of tasks, groups or tags of lm-eval, or of a folder of your own")
    include_path: str | None = option(None, "folder with task files of your own (YAML)")
    num_fewshot: int | None = option(
        None, "examples before each question; default: what the task says", least=0, most=COUNT
    )
    limit: float | None = option(
        None,
        "only the first documents of each task: this many, or below 1 this share of them; for trials only",
        above=0,
        most=COUNT,
    )
    batch_size: int = option(1, "rows that run at once", least=1, most=65_536)
    max_length: int | None = option(
        None, "most tokens of a row; default: the model's context", least=1, most=COUNT
    )
    apply_chat_template: bool = option(False, "put prompts through the tokenizer's chat template")
    fewshot_as_multiturn: bool | None = option(
        None, "with a chat template: each example is a turn of its own; default: as the harness does"
    )
    system_instruction: str | None = option(None, "system message of every prompt")
    gen_kwargs: str | None = option(
        None, "options of generation that go before those of a task, e.g. max_gen_toks=64,temperature=0"
    )
    random_seed: int = option(0, "seed of Python's random numbers", least=0, most=SEED)
    numpy_random_seed: int = option(1234, "seed of NumPy's", least=0, most=SEED)
    torch_random_seed: int = option(1234, "seed of torch's", least=0, most=SEED)
    fewshot_random_seed: int = option(1234, "seed by which examples are drawn", least=0, most=SEED)
    confirm_run_unsafe_code: bool = option(
        False, "allow tasks that run programs which the model wrote, outside any sandbox: at your own risk"
    )
    log_samples: bool = option(False, "also write each document with the model's answers")
    lora_save_path: str | None = option(None, "adapter that is measured beside the base, as `tuned`")
    control_path: str | None = option(
        None, "adapter trained in the same way but without a locality objective, measured as `control`"
    )
    allow_other_base: bool = option(
        False, "use an adapter on another base model than the one it was trained on"
    )
    policies: str = option("lru,lfu,opt", "eviction policies whose hit rates are reported")
    bootstrap_samples: int = option(
        2000, "bootstrap resamples of the rows for each 95 % interval of routing", least=1, most=100_000
    )
    output_path: str | None = option(
        None, "folder of the results [./results{model_key}/lm-eval-<model>-<adapters>]"
    )
    json: str | None = option(None, "also write the report to this JSON file; -: standard output")
    resume: bool = option(
        False, "go on with a run of the same settings that was stopped, with the tasks that it finished"
    )
