"""Checkpoints: which of them are whole, so that training goes on after `kill -9` from the last that is.

`Trainer` writes a checkpoint file by file. The last thing written here is `complete.json` with every file's SHA-256; a
checkpoint without it, or with other bytes than it says, was cut short and is removed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from helpers.artifacts import ArtifactError, read_json, sha256_tree, write_json

MARK = "complete.json"
KEY = "key.json"
STATE = "trainer_state.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written."""


def last_complete(folder: Path, *, key: str) -> Path | None:
    """The newest whole checkpoint of the run that `key` names, or None; what is of another run or cut short is removed.

    Checkpoints name the best one by its path, so that they are of no use in another place.
    """
    named = {"key": key, "folder": str(folder.resolve())}
    try:
        ours = read_json(folder / KEY) == named
    except ArtifactError:
        ours = False
    if not ours:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / KEY, named)
        return None
    whole = []
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if is_complete(checkpoint):
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max((checkpoint for checkpoint in whole if _best_of(checkpoint) in (None, *whole)), key=_step, default=None)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint holds every byte that was written when it was finished."""
    try:
        return read_json(checkpoint / MARK) == _digests(checkpoint)
    except ArtifactError:
        return False


class CompleteCheckpoints(TrainerCallback):
    """Saves every `steps` steps too (0: at evaluations only), marks what was saved as whole, then removes older ones.

    Only the newest checkpoint and that of the best weights are kept, and none is removed before the new one is whole.
    """

    def __init__(self, *, steps: int = 0):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint between two evaluations; the last step of an epoch is saved after its evaluation."""
        between = state.epoch % 1 != 0 and state.global_step < state.max_steps
        if self.steps and state.global_step % self.steps == 0 and between:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        """Mark the checkpoint, when every process has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            with writing(checkpoint):
                write_json(checkpoint / MARK, _digests(checkpoint))
            for older in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                if older not in (checkpoint, _best_of(checkpoint)):
                    shutil.rmtree(older)


@contextmanager
def writing(checkpoint: Path) -> Iterator[None]:
    """Say in one sentence that a checkpoint could not be written; the one before is still whole."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if type(error) is RuntimeError and not re.search("PytorchStreamWriter|inline_container|iostream", str(error)):
            raise  # not from torch.save
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"The checkpoint {checkpoint} could not be written ({reason}): make room there, then run again; training "
            "goes on from the checkpoint before."
        ) from error


def finished(checkpoint: Path, *, patience: int) -> bool:
    """Whether the run had come to its end with this checkpoint, by its last step or by patience."""
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    stopping = state.stateful_callbacks["EarlyStoppingCallback"]["attributes"]
    return state.global_step >= state.max_steps or stopping["early_stopping_patience_counter"] >= patience


def _best_of(checkpoint: Path) -> Path | None:
    """The checkpoint with the best weights so far, which `Trainer` loads at the end."""
    best = read_json(checkpoint / STATE)["best_model_checkpoint"]
    return checkpoint.with_name(Path(best).name) if best else None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _digests(checkpoint: Path) -> dict[str, str]:
    digests = sha256_tree([checkpoint], checkpoint)
    digests.pop(MARK, None)
    return digests
