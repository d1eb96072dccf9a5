"""The routers of an adapter as a file of their own, which `dwellmoe apply` and `gguf-routers` read."""

from pathlib import Path

from dwellmoe.adapter_folder import ADAPTER_WEIGHTS
from dwellmoe.errors import UserError
from dwellmoe.export.router_file import TunedRouters, write_routers
from dwellmoe.export.trained_adapter import Trained, merged_routers, say_lost

WHOLE = "dwellmoe export hf writes the whole model"


def export_routers(trained: Trained, out: str) -> int:
    """Writes the routers that an adapter trained, says what else it trained, and gives how many tensors were
    written. Raises UserError.
    """
    for path in (Path(trained.path) / ADAPTER_WEIGHTS, *trained.shards.paths):
        if Path(out).resolve() == path.resolve():
            raise UserError(f"--out {out}: is a file of the adapter or its base: choose another")
    merged = merged_routers(trained)
    changed = [router for router in merged.routers if router.is_changed]
    say_lost(trained, ["routers"], WHOLE)
    write_routers(out, TunedRouters(merged.source, merged.base, changed), _revision(trained))
    return len(changed)


def _revision(trained: Trained) -> str:
    """The commit of the base on the hub, which its folder in the hub's cache is called by; '' elsewhere."""
    folder = trained.shards.paths[0].parent
    return folder.name if folder.parent.name == "snapshots" else ""
