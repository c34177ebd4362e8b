"""Known items: what notebook 04 asks of a fine-tuned model, as tasks of notebook 05."""

from __future__ import annotations

import pandas as pd

from helpers.artifacts import read_table
from helpers.config import Items, Paths
from helpers.donors import symmetric_replacement
from helpers.drafts import DONORS
from helpers.experiment import select_pairs
from helpers.items import taught_items
from helpers.models import accelerator, load_model
from helpers.pairs import SUBJECT
from helpers.tasks import Corruption, Task
from helpers.training import ANALYSED


def known_items(paths: Paths, *, seed: int, rule: Items, count: int) -> tuple:
    """The fine-tuned model of a seed, and the confirmatory items of notebook 04 that it knows, a task per kind.

    A task has at most `count` pairs, and several donors. By the rule that chooses them (a clean logit difference above
    the profile's) the model does these by construction.
    """
    model, tokenizer = load_model(paths.data / "models" / f"{ANALYSED}-seed{seed}")
    items = taught_items(read_table(paths.data / "items" / "items.parquet"), seed=seed)
    return model, item_tasks(model.to(accelerator()), tokenizer, items, rule=rule, count=count)


def item_tasks(model, tokenizer, items: pd.DataFrame, *, rule: Items, count: int) -> list[Task]:
    """The items that a model knows, as in `known_items`; their donors are of the item's own arm."""
    selection = select_pairs(model, tokenizer, items, settings=rule)
    kept = {pair.pair_id: [pair] for pair in selection.pairs}
    asked = items[(items["item_id"] + "/" + items["wording_id"]).isin(selection.described["pair"])]
    for donor in range(1, DONORS):
        for _, arm in asked.groupby("arm"):
            for pair in symmetric_replacement(arm, tokenizer, seed=rule.seed + donor)[0]:
                if pair.pair_id in kept:
                    kept[pair.pair_id].append(pair)
    tasks, kinds = [], selection.described.set_index("pair")["kind"]
    for kind in kinds.unique():
        own = [donors for name, donors in kept.items() if kinds[name] == kind and len(donors) == DONORS]
        if own:
            pairs, *more = zip(*own[:count], strict=True)
            excluded = selection.excluded[selection.excluded["kind"] == kind]
            refused = excluded.groupby("reason").size().rename("count").reset_index()
            tasks.append(Task(f"{kind} items", (Corruption("subject", SUBJECT, pairs, tuple(more)),), refused))
    return tasks
