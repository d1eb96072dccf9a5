"""Builds a fine-grained MoE out of SmolLM2-135M-Instruct, stage by stage, and measures it after each.

    python models/tiny-smollm2-moe/build.py --output_dir .cache/smollm2-moe

An interrupted build goes on where it was. With the default settings the result's checksum is compared with
the one in checksum.json.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from dwellmoe.data.download import file_sha256
from dwellmoe.data.download_cache import digest
from dwellmoe.errors import UserError, run_command
from dwellmoe.files import replacing_path
from moe_activations import TwinStream
from moe_distil import distil
from moe_files import load_block, load_numbers, save_block, save_numbers
from moe_heal import ALL_NEURONS, heal_block, mean_error, refit_down
from moe_routed_share import changed_routing, random_experts, without_experts
from moe_router_fit import contribution_norms, fit_router, recall
from moe_source import HELD_OUT_SETS, ROW_TOKENS, healing_rows, held_out_rows, unpack_dense
from moe_split import MoeShape, deal_neurons, fill_block, neuron_strength, new_moe

CHECKSUM = Path(__file__).resolve().parent / "checksum.json"
NUMBERS = "build_numbers.json"
CLUSTERED_TOKENS = 4096
CHECK_ROWS = 8
"""The last of the healing rows: blocks are not healed on them, their errors are measured there."""


class Build:
    """The stages of a build; what a stage has finished is kept in the work folder and not done again."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.shape = MoeShape(args.num_experts, args.top_k, args.shared_neurons)
        self.work = args.work_dir / digest(settings_of(args))
        fresh = {"settings": settings_of(args), "seconds": {}, "perplexity": {}, "blocks": {}}
        self.numbers = load_numbers(self.work / "numbers.json", fresh)
        dense_folder = unpack_dense(args.work_dir / "dense")
        self.tokenizer = AutoTokenizer.from_pretrained(dense_folder)
        self.dense: Any = AutoModelForCausalLM.from_pretrained(dense_folder, dtype=torch.float32).eval()
        self.held_out = {n: held_out_rows(self.tokenizer, n, args.held_out_rows) for n in HELD_OUT_SETS}
        self.rows = healing_rows(self.tokenizer, args.heal_rows + args.distil_rows, args.seed)

    def run(self) -> dict:
        """Every stage; returns the numbers, the result's checksum among them."""
        moe = new_moe(self.dense, self.shape)
        moe.set_experts_implementation(ALL_NEURONS)
        self.measure("dense", self.dense)
        self.timed("blocks", lambda: self.blocks(moe))
        for stage in ("fitted", "healed"):
            self.load(moe, stage)
            self.measure(stage, moe)
        self.timed("end_to_end", lambda: self.end_to_end(moe))
        self.save(moe)
        return self.numbers

    def timed(self, stage: str, work) -> None:
        """Does the work and adds to the seconds that the stage took, over all its interrupted runs."""
        start = time.monotonic()
        try:
            work()
        finally:
            seconds = self.numbers["seconds"]
            seconds[stage] = round(seconds.get(stage, 0) + time.monotonic() - start, 1)
            self.keep()

    def keep(self) -> None:
        """Writes the numbers down."""
        save_numbers(self.numbers, self.work / "numbers.json")

    def blocks(self, moe: Any) -> None:
        """Splits, fits and heals block after block along one pass of the text through both models."""
        kept = self.work / "stream.safetensors"
        if kept.exists():
            stream = TwinStream.resume(self.dense, moe, kept)
        else:
            stream = TwinStream.begin(self.dense, moe, self.rows[: self.args.heal_rows])
        layers = len(self.dense.model.layers)
        for layer in tqdm(range(stream.layer, layers), initial=stream.layer, total=layers, desc="blocks"):
            block = moe.model.layers[layer].mlp
            stream.advance(lambda *task, block=block, layer=layer: self.make_block(block, layer, *task))
            stream.save(kept)

    def make_block(self, block: Any, layer: int, x_TD: Tensor, target_TD: Tensor) -> None:
        """Brings the block into its state at the end of this stage: from its file, or made and kept."""
        if self.path("healed", layer).exists():
            load_block(block, self.path("healed", layer))
        else:
            self.numbers["blocks"][str(layer)] = self.block(block, layer, x_TD, target_TD)
            self.keep()

    def block(self, block: Any, layer: int, x_TD: Tensor, target_TD: Tensor) -> dict[str, float]:
        """One block through its steps, kept in files. Returns its relative errors and recall."""
        args, dense_block = self.args, self.dense.model.layers[layer].mlp
        (x_TD, check_x_TD), (y_TD, check_y_TD) = (apart(tensor_TD) for tensor_TD in (x_TD, target_TD))
        strength_TN = neuron_strength(dense_block, x_TD[:CLUSTERED_TOKENS])
        fill_block(block, dense_block, deal_neurons(strength_TN, self.shape, args.seed), self.shape)
        norms_TE = torch.cat([contribution_norms(block.experts, part) for part in x_TD.split(2048)])
        with torch.no_grad():
            block.gate.weight.copy_(fit_router(x_TD, norms_TE))
        save_block(block, self.path("fitted", layer))
        numbers = {"fitted": mean_error(block, check_x_TD, check_y_TD)}
        check_norms_TE = contribution_norms(block.experts, check_x_TD)
        numbers["recall"] = recall(block.gate(check_x_TD)[0], check_norms_TE, self.shape.top_k)
        refit_down(block, x_TD, y_TD)
        numbers["refitted"] = mean_error(block, check_x_TD, check_y_TD)
        heal_block(block, x_TD, y_TD, epochs=args.heal_epochs, learning_rate=args.heal_rate, seed=args.seed)
        numbers["healed"] = mean_error(block, check_x_TD, check_y_TD)
        save_block(block, self.path("healed", layer))
        return numbers

    def path(self, stage: str, layer: int) -> Path:
        """Where the block of a layer is kept after a stage."""
        return self.work / stage / f"{layer:02}.safetensors"

    def load(self, moe: Any, stage: str) -> None:
        """Puts every block into the state it had after a stage."""
        for layer, decoder in enumerate(moe.model.layers):
            load_block(decoder.mlp, self.path(stage, layer))

    def end_to_end(self, moe: Any) -> None:
        """The whole model towards the dense one, on rows that no block was healed on."""
        rows, args = self.rows[self.args.heal_rows :], self.args
        folder = self.work / "distil"
        log = distil(moe, self.dense, rows, folder, learning_rate=args.distil_rate, seed=args.seed)
        self.numbers["end_to_end"] = log

    def save(self, moe: Any) -> None:
        """Writes the finished model and measures what was written."""
        with replacing_path(self.args.output_dir) as folder:
            moe.set_experts_implementation("grouped_mm")
            moe.to(dtype=torch.bfloat16).save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            written = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            self.measure("built", written)
            self.measure_without_routing(written)
            self.numbers["sha256"] = file_sha256(folder / "model.safetensors")
            self.keep()
            shutil.copy(self.work / "numbers.json", folder / NUMBERS)

    def measure_without_routing(self, moe: Any) -> None:
        """How much the routed experts matter: none of them, or random ones."""
        with changed_routing(moe, without_experts):
            self.measure("built, routed experts off", moe)
        with changed_routing(moe, random_experts(self.args.seed)):
            self.measure("built, random experts", moe)

    def measure(self, stage: str, model: Any) -> None:
        """Perplexity on each held-out data set after a stage, once."""
        known = self.numbers["perplexity"]
        if stage not in known:
            known[stage] = {name: perplexity(model, rows) for name, rows in self.held_out.items()}
            self.keep()
        figures = ", ".join(f"{name} {figure:.2f}" for name, figure in known[stage].items())
        tqdm.write(f"perplexity, {stage}: {figures}")


def check_replaceable(folder: Path) -> None:
    """Raises UserError for a folder that the result would replace although no build made it."""
    if folder.exists() and not (folder / NUMBERS).exists():
        raise UserError(f"--output_dir {folder}: exists and holds no earlier build; choose another folder")


def settings_of(args: argparse.Namespace) -> dict:
    """The options that the result depends on."""
    return {name: value for name, value in vars(args).items() if name not in ("output_dir", "work_dir")}


def apart(tensor_TD: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens to heal on, and those of the last rows, to check on."""
    check_tokens = CHECK_ROWS * ROW_TOKENS
    return tensor_TD[:-check_tokens], tensor_TD[-check_tokens:]


@torch.no_grad()
def perplexity(model: Any, rows: Tensor) -> float:
    """exp of the mean negative log-likelihood of every token but each row's first."""
    with torch.autocast("cpu", torch.bfloat16):
        losses = [model(input_ids=part, labels=part).loss.item() for part in tqdm(rows.split(4), leave=False)]
    return math.exp(sum(losses) / len(losses))


def compare(numbers: dict, recorded: dict) -> None:
    """Prints whether the result is the recorded one, if its settings are the recorded ones."""
    if numbers["settings"] != recorded["settings"]:
        print(f"checksum: {numbers['sha256']} (none is recorded for these settings)")
    elif numbers["sha256"] == recorded["sha256"]:
        print("checksum: as recorded")
    else:
        print(f"checksum: {numbers['sha256']}, recorded {recorded['sha256']}: another processor rounds")
        print(f"  differently; compare the perplexity instead, recorded {recorded['perplexity']}")


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add, rows = parser.add_argument, f"rows of {ROW_TOKENS} tokens"
    add("--output_dir", type=Path, default=Path(".cache/smollm2-moe"), help="folder of the finished model")
    add("--work_dir", type=Path, default=Path(".cache/smollm2-moe-build"), help="what each stage finished")
    add("--threads", type=int, default=1, help="of the processor; the checksum holds for the recorded number")
    add("--seed", type=int, default=0, help="of clusters, text order and batches")
    add("--num_experts", type=int, default=40, help="routed experts a layer")
    add("--top_k", type=int, default=6, help="experts chosen for a token")
    add("--shared_neurons", type=int, default=896, help="neurons of a layer's shared expert")
    add("--heal_rows", type=int, default=96, help=f"{rows} that each block is fitted to")
    add("--heal_epochs", type=int, default=1, help="passes over them by gradient")
    add("--heal_rate", type=float, default=2e-3, help="learning rate of these passes")
    add("--distil_rows", type=int, default=192, help=f"{rows} that the whole model is trained on at the end")
    add("--distil_rate", type=float, default=6e-4, help="learning rate of that training")
    add("--held_out_rows", type=int, default=8, help=f"{rows} of each held-out data set that are measured")
    return parser.parse_args(arguments)


def main() -> None:
    args = parse_options()
    check_replaceable(args.output_dir)
    torch.set_num_threads(args.threads)
    compare(Build(args).run(), json.loads(CHECKSUM.read_text()))
    print(f"built: {args.output_dir}")


if __name__ == "__main__":
    run_command(main)
