"""`dwellmoe export`: hands a trained adapter to other programs."""

import argparse
from pathlib import Path

from dwellmoe.adapter_folder import check_adapter_folder
from dwellmoe.cli.export_options import export_parser
from dwellmoe.errors import UserError
from dwellmoe.files import check_new_folder, check_writable


def run(words: list[str]) -> None:
    """Carries out one command line. Raises UserError."""
    arguments = export_parser().parse_args(words)
    if _names_a_file(arguments.adapter):
        _check_router_file(arguments)
    else:
        check_adapter_folder(arguments.adapter)
    COMMANDS[arguments.command](arguments)


def _names_a_file(adapter: str) -> bool:
    """Whether an adapter is given as a file; one that is missing is known by its ending."""
    path = Path(adapter)
    return path.is_file() or (path.suffix == ".safetensors" and not path.is_dir())


def _check_router_file(arguments: argparse.Namespace) -> None:
    """UserError for what a file in the place of an adapter's folder cannot give."""
    if arguments.command != "gguf-routers":
        raise UserError(
            f"--adapter {arguments.adapter}: a file, expected the folder of an adapter; a file of tuned "
            "routers is for gguf-routers and dwellmoe apply"
        )
    if arguments.lora_out:
        raise UserError(
            f"--lora_out {arguments.lora_out}: the file of tuned routers {arguments.adapter} holds no LoRA: "
            "give the folder of the adapter"
        )
    for option in ("model_name", "allow_other_base"):
        if getattr(arguments, option):
            raise UserError(
                f"--{option}: is for the folder of an adapter; a file of tuned routers ({arguments.adapter}) "
                "has the checksums of the tensors that it replaces, and no model is read"
            )


def run_router(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out)
    from dwellmoe.export.tuned_routers import export_routers

    count = export_routers(_load(arguments), arguments.out)
    print(f"{arguments.out}: {count} tensors of routers, {Path(arguments.out).stat().st_size:,} bytes")


def run_gguf_routers(arguments: argparse.Namespace) -> None:
    if arguments.in_place == bool(arguments.out):
        raise UserError("give either --out FILE or --in_place")
    for path in filter(None, (arguments.out, arguments.lora_out)):
        check_writable(path)
    from dwellmoe.export.gguf_routers import export_gguf_routers, read_base

    if _names_a_file(arguments.adapter):
        from dwellmoe.export.router_file import read_routers

        tuned = read_routers(arguments.adapter)
        lines = export_gguf_routers(read_base(arguments.base), tuned, arguments.out)
    else:
        parts = read_base(arguments.base)  # before the adapter's base is read, which takes longer
        from dwellmoe.export.gguf_adapter import export_gguf_adapter

        lines = export_gguf_adapter(parts, _load(arguments), arguments.out, arguments.lora_out)
    print(*lines, sep="\n")


def run_adapter(arguments: argparse.Namespace) -> None:
    check_new_folder(arguments.out)
    from dwellmoe.export.per_expert import export_per_expert

    count = export_per_expert(_load(arguments), arguments.out)
    print(f"{arguments.out}: an adapter of {count} tensors")


def run_hf(arguments: argparse.Namespace) -> None:
    check_new_folder(arguments.out)
    from dwellmoe.export.merged import export_merged
    from dwellmoe.loading import quiet

    quiet()
    export_merged(arguments.adapter, arguments.model_name, arguments.allow_other_base, arguments.out)
    print(f"{arguments.out}: the merged model")


def run_gguf(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out)
    from dwellmoe.export.llama_cpp import find_converter

    converter = find_converter(arguments.llama_cpp, arguments.adapter, arguments.out)
    from dwellmoe.export.whole_gguf import export_gguf
    from dwellmoe.loading import quiet

    quiet()
    names = ("adapter", "model_name", "allow_other_base", "out", "outtype")
    export_gguf(converter, *(getattr(arguments, name) for name in names))
    print(f"{arguments.out}: the merged model, {Path(arguments.out).stat().st_size:,} bytes")


def _load(arguments: argparse.Namespace):
    from dwellmoe.export.trained_adapter import load_trained
    from dwellmoe.loading import quiet

    quiet()
    return load_trained(arguments.adapter, arguments.model_name, arguments.allow_other_base)


COMMANDS = {
    "router": run_router,
    "gguf-routers": run_gguf_routers,
    "adapter": run_adapter,
    "hf": run_hf,
    "gguf": run_gguf,
}
