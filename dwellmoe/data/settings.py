"""Settings of the data: which data set, and how its examples are cut."""

from dataclasses import dataclass

from dwellmoe.options import check_at_least, option


@dataclass
class DataSettings:
    """Which data, cut how."""

    dataset_name: str = option("mmlu", "a folder of datasets/, or a path to a task.toml of your own")
    max_words_len: int = option(512, "tokens an example: a longer prompt is cut on its left, and counted")
    packing: bool = option(False, "put several requests into one row instead of padding")
    data_preprocess_only: bool = option(False, "tokenise, cache, print the counts and stop")
    limit_train: int | None = option(None, "use only so many training examples")
    limit_validation: int | None = option(256, "use only so many validation examples; 0 is all")

    def __post_init__(self):
        check_at_least("max_words_len", self.max_words_len, 8)
        self.limit_validation = self.limit_validation or None
