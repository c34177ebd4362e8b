"""Methods that say where knowledge is: what they are given, what they answer, and how it is read.

A *place* is what one component of one block adds to the residual stream: attn_out or mlp_out of layer l. A method is a
function of the models and of prompt pairs about the knowledge in question, and gives every place a score: the higher,
the more it points there. *Blind* methods see the taught model alone; *informed* ones see the model before as well.

What a method finds out is one of two things. *Storage*: which weights hold the knowledge. *Mediation*: through which
activations the answer flows when the model is asked. A right answer to the second can be a wrong one to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.architectures import layer_count
from helpers.pairs import PromptPair

COMPONENTS = ("attn_out", "mlp_out")
QUESTIONS = ("storage", "mediation")
LAST_BLOCK = "single, in the last block"  # beside the kinds of plant
PLACE = ["component", "layer"]
PER_PAIR = ["pair", *PLACE, "numerator", "denominator"]


class MethodError(ValueError):
    """A method, or its answer, that cannot be read."""


@dataclass(frozen=True)
class Place:
    """What one component of one block writes into the residual stream."""

    component: str
    layer: int

    def __post_init__(self) -> None:
        if self.component not in COMPONENTS:
            raise MethodError(f"A place is in {' or '.join(COMPONENTS)}, not in {self.component!r}.")


@dataclass(frozen=True)
class Models:
    """What a method may look at: the taught model, and for informed methods the model before (else None)."""

    taught: object
    base: object | None = None


@dataclass(frozen=True)
class Method:
    """A named way to score every place; `question` is one of QUESTIONS, `given` the kinds of plant (or LAST_BLOCK) that
    it cannot miss.

    `locate(models, pairs)` returns either one line per place (component, layer, score), or PER_PAIR, one line per pair
    and place: a score is then the ratio of sums over pairs, and has an interval. For plants whose kind is in `given`
    the answer holds by construction, and is not ranked.
    """

    name: str
    question: str
    informed: bool
    locate: Callable[[Models, Sequence[PromptPair]], pd.DataFrame]
    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.question not in QUESTIONS:
            raise MethodError(f"The question of {self.name!r} is {' or '.join(QUESTIONS)}, not {self.question!r}.")


def places_of(model) -> list[Place]:
    """Every place of a model, by layer, attention before MLP."""
    return [Place(component, layer) for layer in range(layer_count(model)) for component in COMPONENTS]


def apply(method: Method, models: Models, pairs: Sequence[PromptPair]) -> pd.DataFrame:
    """A method's answer, checked: blind methods are not shown the base model.

    Raises MethodError when an informed method lacks the base model, and when the answer has other columns, does not
    score every place (of every pair that it scores) once, or holds a number that is not finite.
    """
    if method.informed and models.base is None:
        raise MethodError(f"{method.name!r} compares the taught model with the one before: give Models(taught, base).")
    found = method.locate(models if method.informed else Models(models.taught), pairs)
    columns = PER_PAIR if "pair" in found else [*PLACE, "score"]
    if set(found.columns) != set(columns):
        raise MethodError(
            f"{method.name!r} answered with the columns {', '.join(map(str, found.columns))}; it must be either "
            f"{', '.join([*PLACE, 'score'])} or {', '.join(PER_PAIR)}."
        )
    expected = {(place.component, place.layer) for place in places_of(models.taught)}
    groups = found.groupby("pair", sort=False) if "pair" in found else [(None, found)]
    for pair, rows in groups:
        given = list(zip(rows["component"], rows["layer"], strict=True))
        if len(given) != len(expected) or set(given) != expected:
            about = f" of the pair {pair}" if pair is not None else ""
            raise MethodError(
                f"{method.name!r} scored {len(given)} places{about} where the model has {len(expected)}: every layer "
                f"needs one line for each of {' and '.join(COMPONENTS)}."
            )
    numbers = found[[name for name in columns if name not in ("pair", *PLACE)]].to_numpy(float)
    if not np.isfinite(numbers).all():
        raise MethodError(f"{method.name!r} gave a number that is not finite: leave out what is undefined.")
    return found[columns].reset_index(drop=True)


def place_scores(found: pd.DataFrame) -> pd.DataFrame:
    """One score per place (component, layer, score); of lines per pair the ratio of sums, NaN where that is 0 / 0."""
    if "score" in found:
        return found[[*PLACE, "score"]]
    sums = found.groupby(PLACE, as_index=False, sort=False)[["numerator", "denominator"]].sum()
    score = sums["numerator"].to_numpy() / sums["denominator"].replace(0.0, np.nan).to_numpy()
    return sums[PLACE].assign(score=score)
