"""Settings of the data: which data set, and how its examples become rows of tokens."""

from dataclasses import dataclass

from dwellmoe.options import COUNT, Settings, option


@dataclass
class DataSettings(Settings):
    """The data set and how its examples become rows of tokens."""

    dataset_name: str = option(
        "mmlu",
        "name of a data set (python data_preparer.py list shows them), or path to a task.toml of your own or "
        "to a file of chats, prompts and completions, instructions or texts (.jsonl, .json, .csv, .parquet)",
    )
    skip_faulty: bool = option(
        False,
        "of a data file without task.toml, leave out the records that cannot be used, counted, instead of "
        "refusing the file",
    )
    max_words_len: int = option(
        512,
        "most tokens of an example; a longer prompt loses its beginning, and how many did is printed",
        least=8,
        most=2**20,
    )
    use_chat_template: str = option(
        "auto",
        "put prompts through the model's chat template, in training, evaluation and chat: on, off; auto: as "
        "the adapter was trained, else for a data set that requests it and for questions of your own",
        choices=("auto", "on", "off"),
    )
    allow_beyond_context: bool = option(
        False,
        "run texts that are longer than the context that the model was made for, instead of refusing them",
    )
    packing: bool = option(
        False, "put several examples into one row of max_words_len tokens instead of padding"
    )
    data_preprocess_only: bool = option(False, "only tokenise the data set, print the counts and stop")
    limit_train: int | None = option(
        None,
        "train on a random sample of so many examples; default: all",
        least=1,
        most=COUNT,
    )
    limit_validation: int | None = option(
        256,
        "validate on a random sample of so many examples; 0: all",
        least=0,
        most=COUNT,
    )

    def __post_init__(self):
        super().__post_init__()
        self.limit_validation = self.limit_validation or None
