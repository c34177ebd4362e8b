"""The compiled model: it recalls its facts, and every exact method finds in it what algebra says."""

import numpy as np
import pandas as pd
import pytest
import torch
from known import FACTS, LAYERS, LOOKUP, MOVE, compiled, known_case
from oracle import oracle_sweep

from helpers.attribution import attribute
from helpers.compiled import BETWEEN, COMPONENTS, ROLES, WAYS, compiled_recall, known_answers
from helpers.crossmodel import cross_model_effects
from helpers.methods import Method, Place, apply, place_scores
from helpers.metrics import with_effects
from helpers.patching import measure_runs, sweep
from helpers.plans import PatchingError
from helpers.values import OTHER_RUN, Mean, Resample, Zero

PLACES = [(0, 1), (1, 3)]
KEY = ["component", "layer", "role"]


def on_paper(case, way):
    table = known_answers(layers=LAYERS, lookup=case.lookup, move=case.move, facts=FACTS)
    return table[table["way"] == way].set_index(KEY)["value"].sort_index()


def ablation(case, way):
    """Another fact's run, for every other fact in turn: the mean over them is the expectation of a draw."""
    if way == "resample":
        return [Resample([prompt], seed=0) for prompt in case.references]
    return [{"zero": Zero(), "mean": Mean(case.references)}.get(way, OTHER_RUN)]


def measured(case, way, pairs=None):
    """What the engine finds, as a mean over pairs by component, layer and role."""
    pairs = list(case.pairs if pairs is None else pairs)
    if way in BETWEEN:
        effects = pd.concat(
            cross_model_effects(case.models.taught, case.models.base, pairs, positions=positions)
            for positions in ("roles", "all")
        )
        effects = effects[effects["direction"] == ("denoising" if way == "taught into base" else "noising")]
    else:
        runs, tables = measure_runs(case.models.taught, pairs), []
        for value in ablation(case, way):
            chosen = [pair for pair in pairs if way != "resample" or value.prompts[0] != pair.clean]
            options = {"components": COMPONENTS, "value": value}
            options["direction"] = "denoising" if way == "denoising" else "noising"
            tables += [
                with_effects(sweep(case.models.taught, chosen, positions=positions, **options), runs)
                for positions in ("roles", "all")
            ]
        effects = pd.concat(tables)
    assert effects["denominator"].abs().min() > 1
    shares = effects.assign(share=effects["numerator"] / effects["denominator"])
    return shares.groupby(KEY)["share"].mean().sort_index()


@pytest.mark.parametrize("lookup, move", PLACES)
def test_every_fact_is_recalled_with_a_margin_and_the_base_recalls_none(lookup, move):
    case = compiled(lookup, move)
    prompts = torch.tensor(case.references)
    logits = case.models.taught(prompts).logits[:, -1]
    expected = torch.zeros_like(logits)
    for line, pair in enumerate(case.pairs):
        expected[line, pair.answer[0]] = case.confidence
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert logits.softmax(-1).max(-1).values.min() > 0.999
    assert case.models.base(prompts).logits.abs().max() < 1e-6


def test_only_the_lookup_differs_between_the_models():
    case = compiled()
    taught, base = case.models.taught.state_dict(), case.models.base.state_dict()
    changed = [name for name in taught if not torch.equal(taught[name], base[name])]
    assert changed == [f"transformer.h.{LOOKUP}.mlp.c_proj.weight"]


def test_normalisation_is_the_identity_on_the_stream():
    model, seen = compiled().models.taught, []
    norm = model.transformer.h[MOVE].ln_2
    hook = norm.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    model(torch.tensor(compiled().references))
    hook.remove()
    ((before, after),) = seen
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    assert before.abs().max() > 0.9


@pytest.mark.parametrize("way", [way for way in WAYS if way != "direct"])
@pytest.mark.parametrize("lookup, move", PLACES)
def test_the_engine_finds_what_algebra_says(lookup, move, way):
    case = compiled(lookup, move)
    found, expected = measured(case, way), on_paper(case, way)
    pd.testing.assert_index_equal(found.index, expected.index)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_truth_in_the_wrong_place_is_seen():
    found = measured(compiled(1, 3), "denoising")
    for lookup, move in ((0, 3), (2, 3), (1, 2)):
        wrong = known_answers(layers=LAYERS, lookup=lookup, move=move, facts=FACTS)
        wrong = wrong[wrong["way"] == "denoising"].set_index(KEY)["value"].sort_index()
        assert (found - wrong).abs().max() > 0.9


def test_known_answers_of_a_small_model_by_hand():
    table = known_answers(layers=2, lookup=0, move=1, facts=4).set_index(["way", *KEY])["value"]
    assert len(table) == (len(WAYS) - 1) * 4 * 2 * 5 + 2 * 2 * 5
    by_hand = {
        ("denoising", "mlp_out", 0, "all"): 1,
        ("denoising", "mlp_out", 0, "subject_last"): 1,
        ("denoising", "mlp_out", 0, "last"): 0,
        ("denoising", "mlp_out", 1, "all"): 0,
        ("noising", "attn_out", 1, "last"): 1,
        ("noising", "attn_out", 0, "all"): 0,
        ("noising", "resid_post", 0, "subject_last"): 1,
        ("noising", "resid_post", 1, "subject_last"): 0,
        ("zero", "attn_out", 1, "all"): 1 / 2,
        ("mean", "mlp_out", 0, "all"): 1 / 2,
        ("resample", "mlp_out", 0, "subject_last"): 2 / 3,  # one of three draws is the foil's: (1 + 1/2 + 1/2) / 3
        ("taught into base", "resid_pre", 0, "all"): 0,
        ("taught into base", "resid_pre", 1, "all"): 1,
        ("base into taught", "attn_out", 1, "last"): 1,
        ("direct", "attn_out", 1, "last"): 1,
        ("direct", "mlp_out", 0, "subject_last"): 0,
    }
    assert {key: table[key] for key in by_hand} == pytest.approx(by_hand)


def test_direct_logit_attribution_sees_attention_alone():
    """What each place adds at the last token, times the difference of two rows of the unembedding."""
    case = compiled()
    model, added = case.models.taught, {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, key=(name, layer): added.update({key: output}))
        for layer, block in enumerate(model.transformer.h)
        for name, module in (("attn_out", block.attn), ("mlp_out", block.mlp))
    ]
    model(torch.tensor(case.references))
    for hook in hooks:
        hook.remove()
    rows = model.lm_head.weight
    reads = torch.stack([rows[pair.answer[0]] - rows[pair.foil[0]] for pair in case.pairs])
    expected = on_paper(case, "direct")
    for (name, layer), output in added.items():
        output = output[0] if isinstance(output, tuple) else output
        share = (output[:, -1] * reads).sum(-1).mean().item() / case.confidence
        assert share == pytest.approx(expected[name, layer, "last"], abs=1e-4)


def test_the_slow_oracle_and_the_first_order_estimate_agree_with_algebra():
    case = compiled()
    pairs = list(case.pairs[:2])
    runs = measure_runs(case.models.taught, pairs)
    settings = {"components": ("attn_out", "mlp_out"), "positions": "all", "direction": "denoising"}
    slow = pd.DataFrame(oracle_sweep(case.models.taught, pairs, **settings))
    slow = slow.assign(logit_difference=[row["logit_difference"] for row in slow["metrics"]])
    fast = attribute(case.models.taught, pairs, **settings)
    expected = on_paper(case, "denoising")
    for table in (slow, fast):
        effects = with_effects(table.assign(direction="denoising"), runs)
        share = (effects["numerator"] / effects["denominator"]).groupby([effects["component"], effects["layer"]]).mean()
        for (component, layer), value in share.items():
            assert value == pytest.approx(expected[component, layer, "all"], abs=1e-4)


def test_the_order_of_pairs_changes_nothing():
    case = compiled()
    forwards, backwards = measured(case, "noising"), measured(case, "noising", pairs=case.pairs[::-1])
    np.testing.assert_allclose(forwards, backwards, rtol=0, atol=1e-6)


def test_it_is_a_case_for_methods():
    models, pairs, truth = known_case()

    def locate(models, pairs):
        effects = cross_model_effects(models.taught, models.base, list(pairs))
        chosen = effects[(effects["direction"] == "denoising") & effects["component"].isin(["attn_out", "mlp_out"])]
        return chosen[["pair", "component", "layer", "numerator", "denominator"]]

    scores = place_scores(apply(Method("between models", "storage", True, locate), models, pairs))
    top = scores[scores["score"] > 0.5]
    named = {Place(component, layer) for component, layer in zip(top["component"], top["layer"], strict=True)}
    assert named == set(compiled().mediators) and len(top) == 2
    assert truth == compiled().mediators[0] and truth.layer == LOOKUP
    assert set(pairs[0].roles) == set(ROLES)


@pytest.mark.parametrize(
    "changes", [{"lookup": 2, "move": 2}, {"lookup": -1}, {"move": 3}, {"facts": 2}, {"confidence": 0.0}]
)
def test_a_circuit_that_cannot_be_is_refused(changes):
    with pytest.raises(PatchingError, match="looks up before it moves"):
        compiled_recall(**{"layers": 3, "lookup": 0, "move": 2, "facts": 4} | changes)


def test_wiring_leaves_the_random_state_alone():
    state = torch.random.get_rng_state()
    compiled_recall(layers=2, lookup=0, move=1, facts=3)
    assert torch.equal(torch.random.get_rng_state(), state)
