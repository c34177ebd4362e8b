"""The trainer: `Trainer` with the probe at every evaluation, the fused loss, and the settings of a configuration.

Several processes share the rows of a step, so that a step is the same whatever their number; only an epoch's last one
may be filled up with rows from its beginning. Validation losses are averaged by batches, as `Trainer` does.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from helpers.checkpoints import STATE, writing
from helpers.config import Configuration, FineTuning
from helpers.fused import fused_gelu, fused_loss
from helpers.packing import texts_apart
from helpers.probe import probe_shares


class FineTuningError(ValueError):
    """Training that cannot start or has gone wrong."""


class ProbedTrainer(Trainer):
    """A `Trainer` whose every evaluation also asks the items: the probe's shares join the evaluation's metrics.

    Where its configuration has packed rows it keeps their texts apart, and in float32 it computes fused.
    """

    def __init__(
        self,
        model,
        *,
        configuration: Configuration,
        probe: pd.DataFrame,
        tokenizer,
        probe_batch_size: int,
        report,
        **kwargs,
    ):
        # GPT-2's class does not name its loss; `Trainer` then also counts every row's first token, which none predicts.
        model.loss_type = "ForCausalLM"
        super().__init__(model, **kwargs)
        self.remove_callback(PrinterCallback)  # `report` says what is to be said
        self._probe, self._probe_tokenizer, self._probe_batch_size = probe, tokenizer, probe_batch_size
        self._packed, self._report = configuration.rows == "packed", report
        self._fused = self._packed and precision_used(configuration) == "fp32"

    def train(self, *args, **kwargs):
        """As `Trainer` does, with GELU in one kernel where rows are packed."""
        with fused_gelu(self.model) if self._packed else nullcontext():
            return super().train(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As `Trainer` does, on texts that are kept apart; or fused."""
        with texts_apart(self.model) if self._packed else nullcontext():
            if not self._fused:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = fused_loss(model, self.model.get_output_embeddings(), inputs, divisor=num_items_in_batch)
        if num_items_in_batch is not None:  # which counts all processes, whose gradients are averaged
            loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss}) if return_outputs else loss

    def finish(self, checkpoint: Path) -> None:
        """Take the end of a run from its last checkpoint: the log, and the best weights."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._load_best_model()

    def _save_checkpoint(self, *args, **kwargs):
        """As `Trainer` does, and when the disk is full one sentence, with the checkpoint before still whole."""
        with writing(Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"):
            super()._save_checkpoint(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        """The evaluation, then the share of probe items answered right, per group and per kind and group.

        Here and not in `evaluate`: that one tells the callbacks, and early stopping must see the shares.
        """
        output = super().evaluation_loop(*args, **kwargs)
        shares = probe_shares(self.model, self._probe_tokenizer, self._probe, batch_size=self._probe_batch_size)
        output.metrics.update({f"eval_{name}": share for name, share in shares.items()})
        if self.is_world_process_zero():
            loss, groups = output.metrics["eval_loss"], sorted(set(self._probe["group"]))
            right = ", ".join(f"{group} {shares[f'{group}_accuracy']:.2f}" for group in groups)
            self._report(f"epoch {self.state.epoch:.4g}: validation loss {loss:.3f}, right: {right}")
        return output


def this_process() -> PartialState:
    """Which process this is, of how many; without `torchrun` the only one."""
    return PartialState(cpu=not torch.accelerator.is_available())


def precision_used(configuration: Configuration) -> str:
    """Half precisions where CUDA has them; elsewhere the run is in fp32, and the notebook says so."""
    available = {"fp16": torch.cuda.is_available, "bf16": _cuda_has_bf16, "fp32": lambda: True}
    return configuration.precision if available[configuration.precision]() else "fp32"


def _cuda_has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def training_arguments(
    folder: Path, configuration: Configuration, settings: FineTuning, *, metric: str, seed: int
) -> TrainingArguments:
    """What `Trainer` is told: checkpoints go to `folder`, and the best of them is that of `metric`."""
    precision, processes = precision_used(configuration), this_process().num_processes
    rows, batches = shared_batch(configuration, processes)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=configuration.epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=configuration.eval_batch_size,
        gradient_accumulation_steps=batches,
        learning_rate=configuration.learning_rate,
        weight_decay=configuration.weight_decay,
        warmup_steps=configuration.warmup_steps,
        fp16=precision == "fp16",
        bf16=precision == "bf16",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=1,  # an epoch's own mean would begin anew where an interrupted run goes on
        restore_callback_states_from_checkpoint=True,  # or patience would begin anew
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=metric != "eval_loss",
        use_cpu=not torch.accelerator.is_available(),
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        torch_compile=settings.compiled and torch.cuda.is_available() and configuration.rows == "packed",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # of one process; else `Trainer` would split its batches between all
    return arguments


def shared_batch(configuration: Configuration, processes: int) -> tuple[int, int]:
    """Rows per batch and batches per step of each of several processes, so that a step has as many rows as with one.

    Batches per step are divided first, and the rows of a batch by what is left. Raises FineTuningError where the
    numbers cannot be divided.
    """
    steps = math.gcd(configuration.gradient_accumulation, processes)
    rows, remainder = divmod(configuration.batch_size, processes // steps)
    if remainder:
        whole = configuration.batch_size * configuration.gradient_accumulation
        raise FineTuningError(
            f"{processes} processes cannot share the {whole} rows of a step ({configuration.gradient_accumulation} "
            f"batches of {configuration.batch_size}) evenly: use a number of processes that divides them."
        )
    return rows, configuration.gradient_accumulation // steps
