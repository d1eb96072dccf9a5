"""Uploads a finished folder to the Hugging Face hub; that it can be is found out before work begins."""

from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi

from dwellmoe.errors import UserError, first_line
from dwellmoe.log import warn_once

CHECKPOINTS = ["checkpoint-*/**", ".*", "**/.*"]
"""Not uploaded: they hold the state of training."""


class HubRepository(NamedTuple):
    """Where a folder goes: NAME or ORGANISATION/NAME, made at need."""

    name: str
    token: str | None
    private: bool | None

    def make(self) -> "HubRepository":
        """Makes the repository unless it is there; gives it under its whole name. UserError where the hub is
        out of reach, no user is logged in, or the name is not the user's.
        """
        try:
            made = HfApi(token=self.token).create_repo(self.name, private=self.private, exist_ok=True)
        except Exception as error:  # of the hub's client, of its network library, of the network
            raise UserError(
                f"--push_to_hub: cannot write to '{self.name}' on the hub ({first_line(error)}): log in with "
                "`hf auth login`, set HF_TOKEN, or leave --push_to_hub out"
            ) from None
        return self._replace(name=made.repo_id)

    def upload(self, folder: Path) -> str | None:
        """Uploads all of a folder but its checkpoints; gives the address. A failure is said, and is none of
        the run: the folder is whole where it lies.
        """
        try:
            found = HfApi(token=self.token).upload_folder(
                repo_id=self.name,
                folder_path=folder,
                commit_message="Upload from DwellMoE",
                ignore_patterns=CHECKPOINTS,
            )
        except Exception as error:  # whatever the hub's client raises: nothing may be lost by it
            warn_once(
                f"warning: {folder} could not be uploaded ({first_line(error)}); it is complete on disk: "
                f"hf upload {self.name} {folder}"
            )
            return None
        return str(found.commit_url)
