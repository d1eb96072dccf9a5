"""An adapter beside a GGUF file of its base: tuned routers in the file, LoRA of attention in another one."""

from pathlib import Path

from dwellmoe.errors import UserError
from dwellmoe.export.gguf_lora import attention_lora, write_lora
from dwellmoe.export.gguf_routers import replacements, targets_of, write_replaced
from dwellmoe.export.trained_adapter import Trained, merged_routers, say_lost, trained_parts
from dwellmoe.offload.gguf_names import ARCHITECTURE
from dwellmoe.offload.io.gguf_file import GgufPart


def export_gguf_adapter(
    parts: list[GgufPart], trained: Trained, out: str | None, lora_out: str | None
) -> list[str]:
    """As `export_gguf_routers`, and writes the LoRA of attention to `lora_out`; says what is left behind.
    Raises UserError before anything is written.
    """
    taken = [*(part.path for part in parts), *targets_of(parts, out)]
    if lora_out and Path(lora_out).resolve() in [path.resolve() for path in taken]:
        raise UserError(f"--lora_out {lora_out}: is the file of --base or --out: choose another")
    tuned = merged_routers(trained)
    found = replacements(parts, tuned, may_be_done=out is None)
    lora = attention_lora(trained, parts) if lora_out else []
    if lora_out and not lora:
        raise UserError(f"--lora_out {lora_out}: adapter '{trained.path}' has no LoRA of attention")
    say_lost(trained, ["routers", *(["attention"] if lora else [])], _advice(trained, lora_out))
    lines = []
    if lora_out:
        write_lora(lora_out, str(parts[0].metadata[ARCHITECTURE]), lora)
        lines = [f"{lora_out}: LoRA of {len(lora)} matrices of attention, for llama.cpp's --lora"]
    return lines + write_replaced(parts, found, tuned, out)


def _advice(trained: Trained, lora_out: str | None) -> str:
    if "attention" in trained_parts(trained) and not lora_out:
        return "--lora_out FILE writes the LoRA of attention beside it"
    return "dwellmoe export gguf converts the whole model"
