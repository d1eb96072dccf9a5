"""Measures what training costs at the layer shape of real models, as ratios of one run.

    python benchmarks/training_scale.py --json PATH [--sections expert_lora,...]

Each section is a file of benchmarks/scale/ with `measure(args)`, which gives the section's figures by name.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from result import parser_of, save_result
from scale import expert_lora, low_bits, objective_memory, streaming

from dwellmoe.errors import UserError, run_command, unknown_name

SECTIONS: dict[str, Callable[[argparse.Namespace], dict]] = {
    "expert_lora": expert_lora.measure,
    "low_bits": low_bits.measure,
    "objective_memory": objective_memory.measure,
    "streaming": streaming.measure,
}


def sections_of(text: str) -> list[str]:
    """The sections of a comma list. Raises UserError for an unknown one, and for none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in SECTIONS:
            raise unknown_name("section", name, SECTIONS)
    if not names:
        raise UserError(f"--sections: choose from {', '.join(SECTIONS)}")
    return names


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma list; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="steps that are timed, of each variant")
    parser.add_argument("--warm_up", type=int, default=2, help="steps before those")
    streaming.add_options(parser)
    args = parser.parse_args()
    result = {"schema_version": 1, "settings": vars(args), "torch_threads": torch.get_num_threads()}
    for name in sections_of(args.sections):
        result |= SECTIONS[name](args)
    save_result(result, args.json)


if __name__ == "__main__":
    run_command(main)
