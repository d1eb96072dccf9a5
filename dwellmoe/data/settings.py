"""Settings of the data: which data set, and how its examples become rows of tokens."""

from dataclasses import dataclass

from dwellmoe.options import check_at_least, option


@dataclass
class DataSettings:
    """The data set and how its examples become rows of tokens."""

    dataset_name: str = option(
        "mmlu",
        "name of a data set (python data_preparer.py list shows them), or path to a task.toml of your own",
    )
    max_words_len: int = option(
        512, "most tokens of an example; a longer prompt loses its beginning, and how many did is printed"
    )
    packing: bool = option(
        False, "put several examples into one row of max_words_len tokens instead of padding"
    )
    data_preprocess_only: bool = option(False, "only tokenise the data set, print the counts and stop")
    limit_train: int | None = option(None, "train on a random sample of so many examples; default: all")
    limit_validation: int | None = option(256, "validate on a random sample of so many examples; 0: all")

    def __post_init__(self):
        check_at_least("max_words_len", self.max_words_len, 8)
        self.limit_validation = self.limit_validation or None
