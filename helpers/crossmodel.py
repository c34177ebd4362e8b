"""Cross-model patching: one model's activations in another model's run of the *same* prompt.

Patching between two prompts asks where information about the subject flows. Patching between the fine-tuned model and
the base model asks what fine-tuning changed, and where: both read the clean prompt, and

    recovered = (LD_patched − LD_base) / (LD_tuned − LD_base)       tuned activations in the base model ("denoising")
    destroyed = (LD_tuned − LD_patched) / (LD_tuned − LD_base)      base activations in the tuned model ("noising")

Here the residual stream at all positions is no identity: what follows it is the other model's. Read by layer it says
how much of the change lies before a block. Where only one block was changed, that block's output recovers 1 by
construction.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from helpers.experiment import EFFECTS
from helpers.pairs import PromptPair
from helpers.patching import measure_runs, sweep
from helpers.values import OtherModel

COMPONENTS = ("resid_pre", "attn_out", "mlp_out", "resid_post")


def cross_model_effects(
    tuned, base, pairs: Sequence[PromptPair], *, positions: str = "all", row_budget: int | None = None
) -> pd.DataFrame:
    """Every component and layer of one model patched into the other's clean run, in both directions, in logits.

    Columns: EFFECTS of helpers.experiment, numerator and denominator being those of this module's formulas; `direction`
    is "denoising" where tuned activations go into the base model. Raises PatchingError for models of two shapes.
    """
    options = {"components": COMPONENTS, "positions": positions, "row_budget": row_budget}
    ends = {}
    for name, model in (("tuned", tuned), ("base", base)):
        runs = measure_runs(model, pairs, metrics=("logit_difference",), row_budget=row_budget)
        ends[name] = runs[runs["run"] == "clean"].set_index("pair")["logit_difference"]
    tables = []
    # A base run that is the clean prompt is what `sweep` calls noising, whichever model's activations are written.
    for direction, model, other in (("denoising", base, tuned), ("noising", tuned, base)):
        swept = sweep(model, pairs, direction="noising", value=OtherModel(other), **options)
        start, patched = swept["pair"].map(ends["base" if model is base else "tuned"]), swept["logit_difference"]
        moved = patched - start if direction == "denoising" else start - patched
        whole = swept["pair"].map(ends["tuned"] - ends["base"])
        tables.append(swept.assign(direction=direction, numerator=moved, denominator=whole, metric="logit_difference"))
    return pd.concat(tables, ignore_index=True)[EFFECTS]
