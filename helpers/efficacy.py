"""Efficacy: how well facts can be edited at every block, and whether that is where localisation says that they are.

Every fact of every plant is given a new answer at every block in turn, by each way of `helpers.editing` and
`helpers.rank_one`. If localisation said where to edit, the blocks at which edits succeed would be those that a method
scores high; Hase et al. (arXiv 2301.04213) find no such relation. Here it is Spearman's correlation over blocks, per
plant, and over all plants with ranks taken within each. The study claims besides that editing definitional facts
differs from editing associative ones; that is a difference of means. Facts are the unit: they are what is resampled,
and a fact that several plants were taught is drawn in all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from helpers.architectures import layer_count
from helpers.artifacts import fingerprint, read_table, write_table
from helpers.draws import draw_rank
from helpers.editing import (
    OUTCOMES,
    EditingError,
    answered,
    fine_tuning_outcomes,
    questions_of,
    requests_of,
    with_new_answers,
)
from helpers.finetune import Writing
from helpers.models import model_digest
from helpers.rank_one import RankOne, rank_one_outcomes, second_moment
from helpers.stats import bootstrap_interval, contrasts

FINE_TUNING = "fine-tuning"
EDITS = ["plant", "method", "block", "item_id", "kind", "known", *OUTCOMES]
ALL_PLANTS = "all"


@dataclass(frozen=True)
class Edits:
    """What is edited, and how: `facts` facts, half of each kind, in `wordings` of the group seen.

    `others` questions about facts that are not edited show the damage. Few and small steps of `writing`, whose block is
    set to each in turn, keep the outcome graded: with many, every block can be taught everything.
    """

    facts: int = 50
    others: int = 100
    wordings: int = 2
    writing: Writing = field(default_factory=lambda: Writing("mlp", 0, steps=60, learning_rate=1e-3))
    rank_one: tuple[RankOne, ...] = (RankOne(key="subject_last"), RankOne(key="last"))
    seed: int = 0


def edit_everywhere(
    models: Mapping[str, Callable[[], object]],
    items: pd.DataFrame,
    tokenizer,
    *,
    old: pd.DataFrame,
    texts: Sequence[Sequence[int]],
    folder: Path,
    settings: Edits = Edits(),  # noqa: B008 - frozen
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Edit the same facts at every block of every plant; one line per plant, way of editing, block and fact: EDITS.

    `models` gives each plant's model by its name; `items` are the facts that the plants were taught, with item_id,
    kind, relation, wording_id, group, prompt, subject, subject_start and answer. `old` (prompt, answer) is replayed in
    fine-tuning, and `texts` (token ids) are what rank-one edits shall not disturb. `known` says whether the plant gave
    the old answer in every wording that is edited. What a plant's block gave lies in `folder` under the fingerprint of
    all that it depends on, the weights included, and is not computed again. Models are left as they were. Raises
    EditingError where too few facts are left to show damage, and as the edits do.
    """
    chosen, rest = _draw(items, settings)
    chosen = with_new_answers(chosen, tokenizer, seed=settings.seed)
    others = questions_of(rest, tokenizer)
    given = {
        "settings": asdict(settings),
        "items": [chosen.to_csv(index=False), rest.to_csv(index=False), old[["prompt", "answer"]].to_csv(index=False)],
        "texts": [list(text) for text in texts],
    }
    tables = []
    for plant, load in models.items():
        model = load()
        key = fingerprint(given | {"weights": model_digest(model)})[:16]
        for block in range(layer_count(model)):
            path = folder / plant / f"block-{block}-{key}.parquet"
            if not path.is_file():
                log(f"{plant}: editing block {block}")
                found = _edit_block(model, tokenizer, chosen, old, others, texts, block=block, settings=settings)
                write_table(path, found.assign(plant=plant, block=block)[EDITS])
            tables.append(read_table(path))
    return pd.concat(tables, ignore_index=True)


def summary(edits: pd.DataFrame) -> pd.DataFrame:
    """Mean outcomes: one line per plant, method, block and kind, with n facts."""
    groups = edits.groupby(["plant", "method", "block", "kind"], as_index=False)
    return groups.agg(**{name: (name, "mean") for name in OUTCOMES}, n=("item_id", "nunique"))


def correlation_with_scores(
    edits: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    outcome: str = "rewrite",
    component: str = "mlp_out",
    resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """Spearman's correlation over blocks of the mean outcome of edits with each method's scores of these blocks.

    `edits` are as `edit_everywhere` gives them, `scores` has plant, method, component, layer and score. One line per
    way of editing, method and plant that both tables know, and one for the plant "all", whose ranks are within plants.
    Columns: edit, method, plant, correlation, low, high (over facts), plants, blocks, facts; NaN where an outcome or a
    score is the same at every block. Raises EditingError for an unknown outcome, and where a method does not score
    every block that was edited exactly once.
    """
    if outcome not in OUTCOMES:
        raise EditingError(f"An outcome is one of {', '.join(OUTCOMES)}, not {outcome!r}.")
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    scored = scores[scores["component"] == component]
    rows = []
    for edit, edited in edits.groupby("method", sort=False):
        outcomes = {
            plant: of_plant.pivot_table(index="item_id", columns="block", values=outcome, sort=True, observed=True)
            for plant, of_plant in edited.groupby("plant", sort=False)
        }
        for method, of_method in scored.groupby("method", sort=False):
            known = {
                plant: (grid, _scores_of(of_method, method, plant, list(grid.columns)))
                for plant, grid in outcomes.items()
                if (of_method["plant"] == plant).any()
            }
            alone = [{plant: pair} for plant, pair in known.items()]
            for name, chosen in zip([*known, ALL_PLANTS], [*alone, known], strict=True):
                if chosen:
                    found = _correlation(list(chosen.values()), **options)
                    rows.append({"edit": edit, "method": method, "plant": name, **found})
    return pd.DataFrame(rows)


def kind_contrasts(
    edits: pd.DataFrame,
    *,
    outcome: str = "rewrite",
    kinds: tuple[str, str] = ("definitional", "associative"),
    resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """Mean outcome of the first kind of facts less the second's, by way of editing: at each block, and over all (<NA>).

    Columns: method, block, the two means by the kinds' names, difference, low, high (over facts), items, null_low,
    null_high (kinds exchanged at random). A fact's plants are averaged first. Raises StatisticsError as
    `contrasts` does.
    """
    if outcome not in OUTCOMES:
        raise EditingError(f"An outcome is one of {', '.join(OUTCOMES)}, not {outcome!r}.")
    table = edits.assign(numerator=edits[outcome], denominator=1.0)
    options = {"item": "item_id", "kinds": kinds, "resamples": resamples, "confidence": confidence, "seed": seed}
    overall = contrasts(table, by=["method"], **options)
    overall.insert(1, "block", pd.array([pd.NA] * len(overall), dtype="Int64"))
    blocks = contrasts(table, by=["method", "block"], **options).astype({"block": "Int64"})
    return pd.concat([overall, blocks], ignore_index=True)


def _draw(items: pd.DataFrame, settings: Edits) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The items to edit, half of each kind, and one wording each of others: by the seed and the names alone."""
    facts = items.drop_duplicates("item_id").sort_values("item_id")
    facts = facts.assign(rank=[draw_rank(settings.seed, item) for item in facts["item_id"]]).sort_values("rank")
    place = facts.groupby("kind").cumcount()
    facts = facts.assign(place=place).sort_values(["place", "rank"])
    ids = facts["item_id"].tolist()
    edited, others = ids[: settings.facts], ids[settings.facts : settings.facts + settings.others]
    if not others:
        raise EditingError(
            f"{len(ids)} facts leave none beside the {settings.facts} that are edited, and damage could not be seen: "
            "lower facts."
        )
    rest = items[items["item_id"].isin(others) & (items["group"] == "seen")]
    rest = rest.sort_values(["item_id", "wording_id"]).drop_duplicates("item_id")
    return items[items["item_id"].isin(edited)].sort_values(["item_id", "wording_id"]), rest


def _edit_block(model, tokenizer, chosen, old, others, texts, *, block: int, settings: Edits) -> pd.DataFrame:
    requests = requests_of(chosen, tokenizer, wordings=settings.wordings)
    before = requests_of(chosen.assign(new_answer=chosen["answer"]), tokenizer, wordings=settings.wordings)
    known = {request.item_id: bool(answered(model, request.questions)[1].all()) for request in before}
    writing = replace(settings.writing, block=block)
    tuned = fine_tuning_outcomes(
        model, tokenizer, chosen, old, others, writing=writing, wordings=settings.wordings
    )  # fmt: skip
    tables = [tuned.assign(method=FINE_TUNING)]
    moment = second_moment(model, texts, block=block)
    for way in settings.rank_one:
        found = rank_one_outcomes(model, requests, others, block=block, moment=moment, settings=way)
        tables.append(found.assign(method=f"rank-one at {way.key}"))
    found = pd.concat(tables, ignore_index=True)
    return found.assign(known=found["item_id"].map(known))


def _scores_of(of_method: pd.DataFrame, method: str, plant: str, blocks: list[int]) -> np.ndarray:
    rows = of_method[of_method["plant"] == plant]
    if sorted(rows["layer"]) != sorted(blocks):
        raise EditingError(
            f"{method!r} scores the blocks {sorted(rows['layer'])} of {plant}, and {blocks} were edited: every block "
            "needs one score."
        )
    return rows.set_index("layer").loc[blocks, "score"].to_numpy(float)


def _correlation(known: list[tuple[pd.DataFrame, np.ndarray]], **options) -> dict[str, float]:
    """The correlation of ranks within plants, over facts that are resampled in all plants together."""
    facts = sorted(set().union(*(grid.index for grid, _ in known)))
    columns, edges = [], [0]
    for grid, _ in known:
        present = grid.reindex(facts)
        columns += [present.fillna(0.0).to_numpy(), present.notna().all(axis=1).to_numpy(float)[:, None]]
        edges.append(edges[-1] + grid.shape[1] + 1)
    ranked_scores = [_centred_ranks(scores[None]) for _, scores in known]

    def statistic(means: np.ndarray) -> np.ndarray:
        products, of_edits, of_scores = 0.0, 0.0, 0.0
        for (first, last), ranks in zip(zip(edges, edges[1:], strict=False), ranked_scores, strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):  # a plant none of whose facts was drawn
                own = _centred_ranks(means[:, first : last - 1] / means[:, last - 1 : last])
            products, of_edits = products + (own * ranks).sum(1), of_edits + (own**2).sum(1)
            of_scores = of_scores + (ranks**2).sum(1)
        size = np.sqrt(of_edits * of_scores)
        return np.divide(products, size, out=np.full(len(means), np.nan), where=size > 0)

    values = np.hstack(columns)
    estimate, low, high = float(statistic(values.mean(0)[None])[0]), np.nan, np.nan
    if np.isfinite(estimate):
        low, high = bootstrap_interval(values, statistic, **options)
    sizes = {"plants": len(known), "blocks": sum(grid.shape[1] for grid, _ in known), "facts": len(facts)}
    return {"correlation": estimate, "low": low, "high": high, **sizes}


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Average ranks along each row, less their mean; ties by rounding are ties."""
    ranks = rankdata(values.round(12), axis=1)
    return ranks - ranks.mean(1, keepdims=True)
