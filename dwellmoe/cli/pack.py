"""`dwellmoe pack`: makes a model whose experts are in a format of choice, one record each."""

import argparse
from pathlib import Path

from dwellmoe.argument_parser import Parser, number
from dwellmoe.errors import UserError, unknown_name
from dwellmoe.folder_lock import only_writer
from dwellmoe.model_folder import check_model_folder
from dwellmoe.settings.model import EXPERT_FORMATS

ABOUT = (
    "Writes a model whose routed experts are in fewer bits (or as they are), each as one record with a "
    "checksum. OUT is a whole model, which --model_name OUT runs. The same command goes on with a run that "
    "was interrupted."
)
MOST_WORKERS = 1024
AS_STORED = "as_stored"


def run(words: list[str]) -> None:
    """Packs one checkpoint, or checks a packed one. Raises UserError."""
    arguments = pack_parser().parse_args(words)
    if arguments.check is not None:
        check(arguments)
        return
    check_arguments(arguments)
    with only_writer(Path(arguments.out)):  # tried before the import, which takes seconds
        pass
    from dwellmoe.offload.pack import pack

    found = pack(arguments.model, Path(arguments.out), arguments.format, arguments.workers, arguments.gguf)
    print(
        f"{arguments.out}: {found.experts} experts of {found.layers} MoE layers, {found.format}, "
        f"{found.bits_a_weight:.2f} bits a weight: {found.experts_bytes:,} bytes; all weights "
        f"{found.total_bytes:,} bytes ({found.source_bytes:,} in {arguments.model})"
    )


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises UserError for words that cannot be, and for a folder that holds no checkpoint."""
    for name in ("model", "out"):  # an unset variable of a shell would mean the current folder
        if not getattr(arguments, name):
            raise UserError(f"{name.upper()} '': not the name of a folder")
    if (name := arguments.format.partition(":")[0]) not in EXPERT_FORMATS:
        raise unknown_name("--format", name, EXPERT_FORMATS)
    if arguments.gguf is not None:
        check_gguf(arguments)
    check_model_folder(arguments.model, with_tokenizer=False)
    if Path(arguments.out).resolve() == Path(arguments.model).resolve():
        raise UserError(f"OUT '{arguments.out}' is the folder of the checkpoint: choose another")


def check_gguf(arguments: argparse.Namespace) -> None:
    """Raises UserError for what cannot be the name of a file, and for a format beside it."""
    if not arguments.gguf:
        raise UserError("--gguf '': not the name of a file")
    if arguments.format != AS_STORED:
        raise UserError(
            f"--gguf {arguments.gguf}: its experts are packed as they are: leave out --format "
            f"{arguments.format}"
        )


def check(arguments: argparse.Namespace) -> None:
    """Re-reads every record. Raises UserError where one is not as it was packed."""
    if not arguments.check:
        raise UserError("--check '': not the name of a folder")
    if arguments.model or arguments.out:
        raise UserError(f"--check {arguments.check}: takes no MODEL and OUT")
    from tqdm import tqdm

    from dwellmoe.offload.io.packed_check import damage, other_checks, record_checks
    from dwellmoe.offload.io.packed_index import read_index
    from dwellmoe.offload.io.shards import find_shards

    check_model_folder(arguments.check, with_tokenizer=False)
    index, shards = read_index(arguments.check), find_shards(arguments.check)
    records, others = [*record_checks(shards, index)], [*other_checks(shards, index)]
    with tqdm(total=len(records) + len(others), desc="records", unit="record") as bar:
        faults = damage(shards, records + others, arguments.workers, bar.update)
    for fault in faults[1:]:
        print(fault)
    if faults:
        raise UserError(faults[0])
    print(
        f"{arguments.check}: {len(records)} experts and {len(others)} other tensors are as they were packed"
    )


def pack_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(prog="dwellmoe pack", description=ABOUT)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="folder of a checkpoint")
    parser.add_argument("out", metavar="OUT", nargs="?", help="folder to write")
    parser.add_argument(
        "--format",
        default=AS_STORED,
        help="form of the experts: int4 (a scale and a zero for each 64 weights of a row; int4:group=32, 64, "
        "128), int8 (a scale a row), nf4, mxfp4 (a power of two for each 32), or as_stored for the "
        "checkpoint's own",
    )
    parser.add_argument(
        "--gguf",
        metavar="FILE",
        help="GGUF file that was made from MODEL (of a split one, any part): its experts are packed, in the "
        "bytes that it holds them in (Q8_0, Q4_0, BF16, F16, F32); all else is MODEL's",
    )
    parser.add_argument(
        "--workers",
        type=number(int, least=1, most=MOST_WORKERS),
        metavar="N",
        help="experts that are packed at the same time; default: one for each processor",
    )
    parser.add_argument(
        "--check",
        metavar="OUT",
        help="instead of packing, read every record and every other tensor of a packed model again and "
        "compare it with its checksum",
    )
    return parser
