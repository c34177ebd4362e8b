"""The study's protocol as a score of places: every module of a place, replayed by plain hooks, says the same."""

from dataclasses import replace

import pytest
import torch
from tiny import LAYERS, random_pair, shared_model

from helpers.methods import PER_PAIR, MethodError
from helpers.published_places import published_recoveries

MODULES = {"attn_out": ("attn.c_attn", "attn.c_proj"), "mlp_out": ("mlp.c_fc", "mlp.c_proj")}
PAIRS = [
    replace(random_pair("b", 5, seed=1), answer=(7, 8, 8), foil=(9, 8, 11)),  # one token in both, one twice
    replace(random_pair("a", 3, seed=2), answer=(4,), foil=(5,)),
    replace(random_pair("longer", 4, seed=3), answer=(4, 6), foil=(5,)),
]


@torch.no_grad()
def mean_difference(model, prompt, pair, given=None, module=None):
    """The published metric after the last token; `module` gives what it gave in the run `given`."""
    held = {}
    hooks = []
    if given is not None:
        keep = model.get_submodule(module).register_forward_hook(lambda m, i, output: held.update(value=output))
        model(torch.tensor([given]))
        keep.remove()
        hooks.append(model.get_submodule(module).register_forward_hook(lambda m, i, output: held["value"]))
    logits = model(torch.tensor([prompt])).logits[0, -1].tolist()
    for hook in hooks:
        hook.remove()
    right, wrong = ([logits[token] for token in tokens] for tokens in (pair.answer, pair.foil))
    return sum(right) / len(right) - sum(wrong) / len(wrong)


def test_every_module_of_a_place_recovers_what_the_place_does():
    model = shared_model("gpt2", 0)
    found = published_recoveries(model, PAIRS)
    assert list(found) == PER_PAIR and len(found) == 2 * 2 * LAYERS
    lines = found.set_index(["pair", "component", "layer"])
    for pair in PAIRS[:2]:
        clean, corrupted = pair.clean + pair.answer, pair.clean + pair.foil
        ends = [mean_difference(model, prompt, pair) for prompt in (clean, corrupted)]
        for component, modules in MODULES.items():
            for layer in range(LAYERS):
                line = tuple(lines.loc[(pair.pair_id, component, layer)])
                for module in modules:
                    name = f"transformer.h.{layer}.{module}"
                    patched = mean_difference(model, corrupted, pair, given=clean, module=name)
                    assert line == pytest.approx((patched - ends[1], ends[0] - ends[1]), abs=5e-5)


def test_answers_of_two_lengths_end_in_a_shape_error_in_the_study_and_are_left_out_here():
    found = published_recoveries(shared_model("gpt2", 0), PAIRS)
    assert set(found["pair"]) == {"b", "a"}
    with pytest.raises(MethodError, match="Of 1 pairs none has an answer and a foil with equally many tokens"):
        published_recoveries(shared_model("gpt2", 0), PAIRS[2:])
