"""How far the parameters of a place have moved: by hand."""

import copy
import math

import pytest
import torch
from tiny import shared_model, tiny_model

from helpers.plans import PatchingError
from helpers.weight_change import weight_changes, weight_norms


def test_norms_are_those_of_all_parameters_of_a_place():
    base = copy.deepcopy(shared_model("gpt2", 0))
    mlp, attention = base.transformer.h[1].mlp, base.transformer.h[2].attn
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.zero_()
        mlp.c_fc.weight[0, 0], mlp.c_proj.bias[2] = 6.0, 8.0  # norm 10
    taught = copy.deepcopy(base)
    with torch.no_grad():
        taught.transformer.h[1].mlp.c_fc.weight[3, 1] += 3.0
        taught.transformer.h[1].mlp.c_proj.bias[2] -= 4.0  # change 5
        taught.transformer.h[2].attn.c_proj.bias[0] += 2.0
        taught.transformer.h[0].ln_2.weight += 1.0  # of no place
    absolute = weight_changes(taught, base, relative=False).set_index(["component", "layer"])["score"]
    relative = weight_changes(taught, base, relative=True).set_index(["component", "layer"])["score"]
    before = math.sqrt(sum(float(p.detach().double().square().sum()) for p in attention.parameters()))
    assert absolute["mlp_out", 1] == pytest.approx(5, rel=1e-6)
    assert relative["mlp_out", 1] == pytest.approx(0.5, rel=1e-6)
    assert absolute["attn_out", 2] == pytest.approx(2, rel=1e-6)
    assert relative["attn_out", 2] == pytest.approx(2 / before, rel=1e-6)
    others = [key for key in absolute.index if key not in (("mlp_out", 1), ("attn_out", 2))]
    assert (absolute[others] == 0).all() and (relative[others] == 0).all()


def test_a_place_without_weights_that_stays_so_has_not_changed():
    base = copy.deepcopy(shared_model("gpt2", 0))
    with torch.no_grad():
        for parameter in base.transformer.h[0].mlp.parameters():
            parameter.zero_()
    assert (weight_changes(copy.deepcopy(base), base, relative=True)["score"] == 0).all()


def test_norms_are_in_units_of_the_median_of_their_component():
    model = copy.deepcopy(shared_model("gpt2", 0))
    with torch.no_grad():
        for block, size in zip(model.transformer.h, (2.0, 3.0, 9.0), strict=True):
            for parameter in block.mlp.parameters():
                parameter.zero_()
            block.mlp.c_fc.weight[0, 0] = size
            for parameter in block.attn.parameters():
                parameter.zero_()
    scores = weight_norms(model).set_index(["component", "layer"])["score"]
    assert scores["mlp_out"].tolist() == pytest.approx([-1 / 3, 0, 2])
    assert (scores["attn_out"] == 0).all()


def test_models_of_two_shapes_are_refused():
    with pytest.raises(PatchingError, match="two models of one number of layers"):
        weight_changes(shared_model("gpt2", 0), tiny_model("gpt2", 0, layers=2), relative=False)
