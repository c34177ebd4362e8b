"""Efficacy: how well facts can be edited at every block, and whether that is where localisation says that they are.

Every fact of every plant is given a new answer at every block in turn, by each way of `helpers.editing` and
`helpers.rank_one`. If localisation said where to edit, the blocks at which edits succeed would be those that a method
scores high; Hase et al. (arXiv 2301.04213) find no such relation. Here it is Spearman's correlation over blocks, per
plant, and over all plants with ranks taken within each. The study claims besides that editing definitional facts
differs from editing associative ones; that is a difference of means. Facts are the unit: they are what is resampled,
and a fact that several plants were taught is drawn in all of them at once. Such an interval says what other facts would
give at these blocks. Blocks are few, and whether a score tells them apart is another question: its answer is what
blocks exchanged at random give, the same exchange in all plants, since plants of one base are alike in which blocks are
easily edited.
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
ASKED = ["item_id", "wording_id", "prompt", "subject", "subject_start", "answer"]
EDITS = ["plant", "method", "block", "item_id", "kind", "known", *OUTCOMES]
ALL_PLANTS = "all"


@dataclass(frozen=True)
class Edits:
    """What is edited, and how: `facts` facts, half of each kind, in `wordings` of the group seen.

    Damage shows in the planted facts that are not edited and in `others` facts from before. Few and small steps of
    `writing`, whose block is set to each in turn, keep the outcome graded: with many, every block can be taught
    everything. For the same reason a rank-one edit at the last token, where any answer can be forced, may change the
    value by no more than half its length.
    """

    facts: int = 50
    others: int = 100
    wordings: int = 2
    writing: Writing = field(default_factory=lambda: Writing("mlp", 0, steps=60, learning_rate=1e-3))
    rank_one: tuple[RankOne, ...] = (RankOne(key="subject_last"), RankOne(key="last", clamp=0.5))
    seed: int = 0


def edit_everywhere(
    models: Mapping[str, Callable[[], object]],
    items: pd.DataFrame,
    tokenizer,
    *,
    old: pd.DataFrame,
    others: pd.DataFrame,
    texts: Sequence[Sequence[int]],
    folder: Path,
    settings: Edits = Edits(),  # noqa: B008 - frozen
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Edit the same facts at every block of every plant; one line per plant, way of editing, block and fact: EDITS.

    `models` gives each plant's model by its name; `items` are the facts that the plants were taught, with item_id,
    kind, relation, wording_id, group, prompt, subject, subject_start and answer. `old` (prompt, answer) is replayed in
    fine-tuning, and `texts` (token ids) are what rank-one edits shall not disturb. Damage is to the items that are not
    edited and to some of `others` (columns as of items, but for kind, relation and group), best none that is replayed:
    one question about each, all counting alike. `known` says whether the plant gave the old answer in every wording
    that is edited. What a plant's block gave lies in `folder` under the fingerprint of all that it depends on, the
    weights included, and is not computed again. Models are left as they were. Raises EditingError where no fact is left
    to show damage, and as the edits do.
    """
    chosen, rest = _draw(items, settings)
    chosen = with_new_answers(chosen, tokenizer, seed=settings.seed)
    rest = pd.concat([rest, _draw_others(others, settings)])[ASKED]
    if rest.empty:
        raise EditingError(
            f"All {chosen['item_id'].nunique()} facts are edited and there are no others, so that damage could not be "
            "seen: lower facts, or give others."
        )
    asked = questions_of(rest, tokenizer)
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
                found = _edit_block(model, tokenizer, chosen, old, asked, texts, block=block, settings=settings)
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
    pooled: bool = False,
    resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """Spearman's correlation over blocks of the mean outcome of edits with each method's scores of these blocks.

    `edits` are as `edit_everywhere` gives them, `scores` has plant, method, component, layer and score. One line per
    way of editing, method and plant that both tables know, and one for the plant "all", whose ranks are within plants;
    `pooled` gives these alone. Columns: edit, method, plant, correlation, low, high (over facts), null_low, null_high
    (blocks exchanged at random), plants, blocks, facts. All are NaN where an outcome or a score is the same at every
    block, low and high also where facts do not differ, as in fine-tuning's damage, which is that of all edits together.
    A plant in which a method scores a block NaN (0 / 0) is left out for that method; where none is left, the line of
    "all" is NaN with 0 plants. Raises EditingError for an unknown outcome, and where a method does not score every
    block that was edited exactly once.
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
            shared = {
                plant: (grid, _scores_of(of_method, method, plant, list(grid.columns)))
                for plant, grid in outcomes.items()
                if (of_method["plant"] == plant).any()
            }
            if not shared:
                continue
            known = {plant: pair for plant, pair in shared.items() if not np.isnan(pair[1]).any()}
            alone = {} if pooled else {plant: [pair] for plant, pair in known.items()}
            for name, chosen in (alone | {ALL_PLANTS: list(known.values())}).items():
                rows.append({"edit": edit, "method": method, "plant": name, **_correlation(chosen, **options)})
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
    """The items to edit, half of each kind, and one wording of each that is not: by the seed and the names alone."""
    facts = items.drop_duplicates("item_id").sort_values("item_id")
    facts = facts.assign(rank=[draw_rank(settings.seed, item) for item in facts["item_id"]]).sort_values("rank")
    place = facts.groupby("kind").cumcount()
    edited = facts.assign(place=place).sort_values(["place", "rank"])["item_id"].head(settings.facts)
    ordered, is_edited = items.sort_values(["item_id", "wording_id"]), set(edited)
    left = ordered[~ordered["item_id"].isin(is_edited) & (ordered["group"] == "seen")]
    return ordered[ordered["item_id"].isin(is_edited)], left.drop_duplicates("item_id")


def _draw_others(others: pd.DataFrame, settings: Edits) -> pd.DataFrame:
    """So many of the other facts, each in one wording: by the seed and the names alone."""
    names = others[["item_id", "wording_id"]].itertuples(index=False)
    ordered = others.assign(rank=[draw_rank(settings.seed, *name) for name in names]).sort_values("rank")
    return ordered.drop_duplicates("item_id").head(settings.others)


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
    sizes = {"plants": len(known), "blocks": sum(grid.shape[1] for grid, _ in known), "facts": len(facts)}
    found = dict.fromkeys(("correlation", "low", "high", "null_low", "null_high"), np.nan)
    if not known:
        return found | sizes
    columns, edges = [], [0]
    for grid, _ in known:
        present = grid.reindex(facts)
        columns += [present.fillna(0.0).to_numpy(), present.notna().all(axis=1).to_numpy(float)[:, None]]
        edges.append(edges[-1] + grid.shape[1] + 1)
    of_scores = [_centred_ranks(scores[None], decimals=12) for _, scores in known]

    def of_edits(means: np.ndarray) -> list[np.ndarray]:
        with np.errstate(divide="ignore", invalid="ignore"):  # a plant none of whose facts was drawn
            shares = [means[:, a : b - 1] / means[:, b - 1 : b] for a, b in zip(edges, edges[1:], strict=False)]
        return [_centred_ranks(share, decimals=6) for share in shares]  # a table in single precision holds no more

    values = np.hstack(columns)
    own = of_edits(values.mean(0)[None])
    found["correlation"] = float(_pooled(own, of_scores)[0])
    if np.isfinite(found["correlation"]):
        null = _pooled(own, _exchanged(known, of_scores, **options))
        tails = [(1 - options["confidence"]) / 2, (1 + options["confidence"]) / 2]
        found["null_low"], found["null_high"] = (float(value) for value in np.quantile(null, tails))
        if any((grid.max() - grid.min() > 1e-6).any() for grid, _ in known):
            found["low"], found["high"] = bootstrap_interval(
                values, lambda means: _pooled(of_edits(means), of_scores), **options
            )
    return found | sizes


def _pooled(ranks: list[np.ndarray], others: list[np.ndarray]) -> np.ndarray:
    """Correlations, a line each, of ranks that are centred within plants; NaN where all ranks are equal."""
    products = sum((own * other).sum(1) for own, other in zip(ranks, others, strict=True))
    size = np.sqrt(sum((own**2).sum(1) for own in ranks) * sum((other**2).sum(1) for other in others))
    return np.divide(products, size, out=np.full(len(products), np.nan), where=size > 0)


def _exchanged(known: list, ranks: list[np.ndarray], *, resamples: int, confidence: float, seed: int) -> list:
    """Each plant's ranks, its blocks exchanged at random: `resamples` lines, the same exchange in every plant."""
    blocks = sorted(set().union(*(grid.columns for grid, _ in known)))
    keys = np.random.default_rng(seed).random((resamples, len(blocks)))
    orders = [np.argsort(keys[:, [blocks.index(block) for block in grid.columns]], axis=1) for grid, _ in known]
    return [own[0][order] for own, order in zip(ranks, orders, strict=True)]


def _centred_ranks(values: np.ndarray, *, decimals: int) -> np.ndarray:
    """Average ranks along each row, less their mean; ties by rounding are ties."""
    ranks = rankdata(values.round(decimals), axis=1)
    return ranks - ranks.mean(1, keepdims=True)
