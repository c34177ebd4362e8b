"""Screening: how far attribution patching can be trusted to find the sites that matter, and what that saves.

`helpers.attribution` estimates every patch and lets the exact engine confirm the best share of them. Here every patch
is run exactly as well, so that three questions have answers: how well estimates and exact effects agree; which part of
the sites with the largest exact effects is among those that would be confirmed (the *recall*); and how much sooner
screening and confirming end than the full sweep. Two networks: the embedded base model on facts that it was taught,
patched in both directions, and random weights of GPT-2 small's size on random tokens.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from benchmarks.cases import SEED, SMALL
from benchmarks.machine import measured
from benchmarks.sweep import RESULTS, write_csv
from helpers.attribution import CORRECTIONS, attribute, screen_and_verify
from helpers.config import Paths, load_profile
from helpers.experiment import select_pairs
from helpers.figures import save_figure
from helpers.items import build_items
from helpers.knowledge import base_facts, load_facts, load_wordings
from helpers.models import load_base
from helpers.pairs import PromptPair, bucket_by_length
from helpers.patching import measure_runs, sweep
from helpers.pretraining import Recipe
from helpers.report import percent

COMPONENTS = ("resid_pre", "attn_out", "mlp_out", "head_out")
SITE = ["component", "layer", "position", "head"]
RANKINGS = {"plain": (), "softmax": ("softmax",), "dropout": ("dropout",), "both": CORRECTIONS}
SHARES = (0.05, 0.1, 0.2, 0.3)
TOP = 0.05  # of the sites, by the magnitude of their mean exact effect: what a screen should find
ENOUGH = 0.9  # of them, from where on a screen is taken to have found them


@dataclass(frozen=True)
class Results(Paths):
    """Where a benchmark's figure goes: beside its numbers."""

    @property
    def figures(self) -> Path:
        """The folder of all benchmarks' results."""
        return self.root / "benchmarks" / "results"


@dataclass(frozen=True)
class Subject:
    """A network, pairs of one length that it is patched on, and the direction."""

    network: str
    direction: str
    model: PreTrainedModel
    pairs: list[PromptPair]
    repeats: int

    def timed(self, function: Callable[..., pd.DataFrame], **options) -> tuple[pd.DataFrame, float]:
        """A table that `function` makes of this subject, and the seconds of the fastest of the repeats."""
        call = partial(function, self.model, self.pairs, components=COMPONENTS, direction=self.direction, **options)
        runs = [measured(call, "cpu") for _ in range(self.repeats)]
        return runs[0][0], min(measurement.seconds for _, measurement in runs)


def subjects() -> Iterator[Subject]:
    """Both networks, made one at a time."""
    model, pairs = trained()
    for direction in ("denoising", "noising"):
        yield Subject("trained", direction, model, pairs, repeats=3)
    model = SMALL.load("cpu")
    yield Subject("random weights", "denoising", model, random_pairs(model.config.vocab_size), repeats=1)


def trained() -> tuple[PreTrainedModel, list[PromptPair]]:
    """The embedded base model, and the longest prompts about facts that it was taught and still knows."""
    profile, paths = load_profile("mini"), Paths("mini")
    model, tokenizer = load_base(profile.model, paths)
    facts = base_facts(load_facts(paths.embedded), entities=Recipe().entities[-1])
    items = build_items(facts, load_wordings(paths.embedded), tokenizer, settings=profile.items)
    pairs = select_pairs(model, tokenizer, items, settings=replace(profile.items, max_pairs_per_kind=200)).pairs
    buckets = bucket_by_length(pairs)
    return model, buckets[max(buckets)]


def random_pairs(vocabulary: int, *, count: int = 8, positions: int = 16) -> list[PromptPair]:
    """Pairs of random tokens that differ everywhere, with random answers."""
    generator = np.random.default_rng(SEED)
    roles = ("prefix",) * (positions - 1) + ("last",)
    pairs = []
    for number in range(count):
        clean = generator.integers(vocabulary, size=positions)
        corrupted = (clean + generator.integers(1, vocabulary, size=positions)) % vocabulary
        answer, foil = generator.choice(vocabulary, 2, replace=False).tolist()
        pairs.append(
            PromptPair(str(number), tuple(clean.tolist()), tuple(corrupted.tolist()), (answer,), (foil,), roles)
        )
    return pairs


def examine(subject: Subject) -> tuple[pd.DataFrame, str]:
    """One row per ranking and component (and "all"), and what is to be said about this subject.

    Columns: network, direction, ranking, component, sites; pearson and spearman of estimated and exact effects over
    lines; rank_spearman of a site's mean rank_score and |mean exact effect|; recall_5 to recall_30; for "all" also the
    seconds of sweep, screen, and screen with verification at `share`, the least that reaches ENOUGH, and their saving.
    """
    one = replace(subject, pairs=subject.pairs[:1], repeats=1)
    for corrections in RANKINGS.values():  # once per process, what nobody waits for twice
        one.timed(attribute, layers=[0], corrections=corrections)
    exact, whole = subject.timed(sweep)
    runs = measure_runs(subject.model, subject.pairs, metrics=("logit_difference",))
    base = runs[runs["run"] == ("corrupted" if subject.direction == "denoising" else "clean")].set_index("pair")
    effect = exact["logit_difference"] - exact["pair"].map(base["logit_difference"])
    lines = exact[[*SITE, "pair"]].assign(exact=effect)
    rows = []
    for ranking, corrections in RANKINGS.items():
        screen, quick = subject.timed(attribute, corrections=corrections)
        lines = lines.assign(estimate=screen["effect"], score=screen["rank_score"])
        for component in ("all", *COMPONENTS):
            part = lines if component == "all" else lines[lines["component"] == component]
            rows.append({"ranking": ranking, "component": component, **agreement(part)})
        overall = rows[-1 - len(COMPONENTS)]
        overall |= {"sweep_seconds": whole, "screen_seconds": quick}
        if reached := [share for share in SHARES if overall[recall_name(share)] >= ENOUGH]:
            both = subject.timed(screen_and_verify, share=reached[0], corrections=corrections)[1]
            overall |= {"share": reached[0], "verified_seconds": both, "saving": whole / both}
        if ranking == "plain":
            plain = lines
    table = pd.DataFrame(rows)
    table.insert(0, "network", subject.network)
    table.insert(1, "direction", subject.direction)
    return table, describe(subject, table, sites_of(plain))


def agreement(lines: pd.DataFrame) -> dict[str, float]:
    """How estimates agree with exact effects, and how many of the largest sites each share of the screen holds."""
    sites = sites_of(lines)
    return {
        "sites": len(sites),
        "pearson": lines["estimate"].corr(lines["exact"]),
        "spearman": lines["estimate"].corr(lines["exact"], method="spearman"),
        "rank_spearman": sites["score"].corr(sites["exact"], method="spearman"),
        **{recall_name(share): recall(sites, share) for share in SHARES},
    }


def sites_of(lines: pd.DataFrame) -> pd.DataFrame:
    """One row per site: mean score, and the magnitudes of the mean exact and estimated effects."""
    means = lines.groupby(SITE, dropna=False, as_index=False)[["score", "exact", "estimate"]].mean()
    return means.assign(exact=means["exact"].abs(), estimate=means["estimate"].abs())


def recall(sites: pd.DataFrame, share: float, *, by: str = "score") -> float:
    """The part of the TOP of the sites, by exact effect, among the best `share` of them `by` a column."""
    wanted = sites["exact"].nlargest(math.ceil(TOP * len(sites))).index
    found = sites[by].nlargest(math.ceil(share * len(sites))).index
    return len(wanted.intersection(found)) / len(wanted)


def recall_name(share: float) -> str:
    """The column of the recall at a share."""
    return f"recall_{100 * share:.0f}"


def describe(subject: Subject, table: pd.DataFrame, plain: pd.DataFrame) -> str:
    """What was found, and where screening fails, in plain words."""
    whole = table[table["component"] == "all"].set_index("ranking")
    parts = table[table["component"] != "all"]
    said = [
        f"{name} never" if pd.isna(row.share) else f"{name} {percent(row.share)}, {row.saving:.1f} times"
        for name, row in whole.iterrows()
    ]
    weak = parts[parts[recall_name(0.1)] < ENOUGH]
    missed = [
        f"{component} ({', '.join(f'{row.ranking} {row.recall_10:.2f}' for row in rows.itertuples())})"
        for component, rows in weak.groupby("component", sort=False)
    ]
    seconds = ", ".join(f"{name} {row.screen_seconds:.1f}" for name, row in whole.iterrows())
    worst = parts.loc[parts["spearman"].idxmin()]
    score, exact = (plain[name].rank(ascending=False) for name in ("score", "exact"))
    miss = plain.loc[score[exact <= math.ceil(TOP * len(plain))].idxmax()]
    head = "" if pd.isna(miss["head"]) else f".{miss['head']}"
    title = f"{subject.network.capitalize()}, {subject.direction}"
    text = f"""{title}: {len(plain)} sites, {len(subject.pairs)} pairs; seconds of the full sweep
        {whole["sweep_seconds"].iat[0]:.1f}, of a screen alone {seconds}. Share to verify until {percent(ENOUGH)} of the
        true top {percent(TOP)} are found, and how often screen and verification then go into the time of the sweep:
        {"; ".join(said)}. Where it fails: verifying only as many sites as are wanted, {percent(TOP)}, the plain screen
        finds {whole.at["plain", recall_name(TOP)]:.2f} of them ({recall(plain, TOP, by="estimate"):.2f} if it ranked by
        the mean's magnitude and not by the mean magnitude). The site that it ranks lowest among them, true number
        {exact[miss.name]:.0f}, is {miss["component"]} {miss["layer"]}{head} at position {miss["position"]}: number
        {score[miss.name]:.0f}. Within one component, {percent(0.1)} verified find less than {percent(ENOUGH)} of its
        own top for {"; ".join(missed) or "none"}. Single estimates follow exact effects worst for {worst["component"]}
        ({worst["ranking"]}): Spearman {worst["spearman"]:.2f}, Pearson {worst["pearson"]:.2f}."""
    return " ".join(text.split())


def draw(table: pd.DataFrame) -> None:
    """Recall by the share that is verified, per component, before and after correction."""
    long = table[table["ranking"].isin(["plain", "both"])].melt(
        ["network", "direction", "ranking", "component"],
        [recall_name(share) for share in SHARES],
        var_name="verified",
        value_name="recall",
    )
    long["verified"] = long["verified"].str.removeprefix("recall_").astype(int)
    corrected = long["ranking"].map({"plain": "plain", "both": "corrected"})
    long["panel"] = long["network"] + ", " + long["direction"] + ":\n" + corrected
    long = long.sort_values("ranking", ascending=False, kind="stable")
    save_figure(
        "screening_recall",
        long[["panel", "component", "verified", "recall"]],
        drawing="curves",
        caption="Part of the 5 % of sites with the largest exact effects among the best of an attribution screen.",
        paths=Results("benchmarks"),
        seed=SEED,
        plumbing=False,
        x="verified",
        xlabel="sites verified, %",
        y="recall",
        ylabel="recall",
        hue="component",
        facet="panel",
        unit=None,
        mark=None,
    )


def main() -> int:
    """Write benchmarks/results/screening.csv and its figure, and say what was found."""
    tables = []
    for subject in subjects():
        table, text = examine(subject)
        tables.append(table)
        print(table.drop(columns=["network", "direction"]).to_string(index=False, float_format="%.2f", na_rep=""))
        print(f"\n{text}\n", flush=True)
    table = pd.concat(tables, ignore_index=True)
    write_csv(table, RESULTS / "screening.csv")
    draw(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
