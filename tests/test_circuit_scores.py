"""Circuit scores: on the compiled circuit, methods whose answer algebra gives, and made-up ones of every kind."""

import pandas as pd
import pytest
from known import LOOKUP, MOVE, compiled

from helpers.circuit_scores import circuit_scores, reading
from helpers.localisers import METHODS
from helpers.methods import PLACE, Method, places_of


def scoring(name, *blocks):
    """A method that scores these blocks 1 and all others 0."""

    def locate(models, pairs):
        rows = [(place.component, place.layer, float(place.layer in blocks)) for place in places_of(models.taught)]
        return pd.DataFrame(rows, columns=[*PLACE, "score"])

    return Method(name, "storage", False, locate)


def test_what_a_method_puts_first():
    made = {"a": (LOOKUP,), "b": (MOVE,), "c": (LOOKUP, MOVE), "d": (0,), "e": (0, LOOKUP), "f": ()}
    table = circuit_scores([scoring(name, *blocks) for name, blocks in made.items()], compiled())
    assert list(table["first"]) == ["stored", "moved", "both", "elsewhere", "elsewhere", "elsewhere"]
    assert table.loc[0, ["stored", "moved", "elsewhere"]].tolist() == [1, 0, 0]
    text = reading(table)
    assert "Of 6 methods 1 put the block that stores the facts first, 1 the one that only moves" in text
    assert "3 score another block as high or higher: d; e; f." in text
    assert "higher" not in reading(table[:3])


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("denoising MLP and attention, all positions", "both"),
        ("denoising MLP and attention, last subject token", "stored"),
        ("noising MLP and attention, last token", "moved"),
        ("direct logit attribution", "moved"),
        ("denoising windows of 3 layers", "elsewhere"),
        ("weight change", "stored"),
    ],
)
def test_methods_find_what_algebra_says(name, first):
    (method,) = (method for method in METHODS if method.name == name)
    assert circuit_scores([method], compiled()).loc[0, "first"] == first
