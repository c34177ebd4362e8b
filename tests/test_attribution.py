"""Attribution patching against difference quotients of a model run by plain hooks, and the screen against the sweep."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import cpu_offload
from conftest import VOCABULARY, tiny_gpt2
from oracle import keep_input, patched_logits, places, record, tokens_of
from tiny import FAMILIES, OWN_ATTENTION, random_pair, shared_model, tiny_model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from helpers.architectures import ArchitectureError
from helpers.attribution import attribute, screen_and_verify
from helpers.patching import measure_runs, sweep
from helpers.plans import COMPONENTS, DIRECTIONS, POSITIONS, PatchingError

LINES = ["pair", "component", "layer", "position", "role", "head", "direction"]
EVERY_CORRECTION = ((), ("softmax",), ("dropout",), ("softmax", "dropout"))
STEP = 1e-5  # of the difference quotients


@pytest.fixture(scope="module")
def model():
    return shared_model("gpt2", 0)


@pytest.fixture(scope="module")
def pairs():
    """Three lengths, in an order that no sorting would keep; two pairs share one."""
    return [
        random_pair("c", 4, seed=1, subject=(1, 2)),
        random_pair("a", 3, seed=2),
        random_pair("d", 4, seed=3, subject=(2,)),
        random_pair("b", 2, seed=4),
    ]


def double_model(family, seed):
    """A tiny model in double precision throughout.

    Most families have their norms in single precision in any model, and GPT-J its scores.
    """
    model = tiny_model(family, seed).double()
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = torch.nn.RMSNorm(module.weight.shape, module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
        if hasattr(module, "scale_attn"):
            module._attn = partial(scores_in_double, module.scale_attn)
    return model


def scores_in_double(scale, query, key, value, mask):
    """What GPT-J calls, without its cast to single precision."""
    pattern = (query @ key.transpose(-1, -2) / scale + mask).softmax(-1)
    return pattern @ value, pattern


@contextmanager
def literal_attention(model, *, held, forced):
    """Attention written out: patterns are put into `held` by layer, and taken from `forced` where it has the layer."""

    def attend(module, query, key, value, mask, *, scaling, sliding_window=None, **unused):
        group = query.shape[1] // key.shape[1]
        key, value = (torch.stack([x[:, head // group] for head in range(query.shape[1])], 1) for x in (key, value))
        scores = query @ key.transpose(-1, -2) * scaling
        asking = torch.arange(scores.shape[2])[:, None]
        asked = asking.T
        hidden = (asked > asking) | (asking - asked >= (sliding_window or len(asking)))
        scores = scores.masked_fill(hidden, -torch.inf)
        held[module.layer_idx] = scores.softmax(-1)
        pattern = forced.get(module.layer_idx, held[module.layer_idx])
        return (pattern @ value).transpose(1, 2), pattern

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS["literal"] = attend
    model.config._attn_implementation = "literal"
    try:
        yield
    finally:
        model.config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS["literal"]


class Oracle:
    """Estimates for one pair by the difference quotient of runs that go a small step of a patch's way.

    A dropped layer adds what it adds in the base run, whatever it reads.
    """

    @torch.no_grad()
    def __init__(self, model, pair, direction):
        prompts = (pair.corrupted, pair.clean) if direction == "denoising" else (pair.clean, pair.corrupted)
        self.model, self.pair, self.prompt, self.patterns = model, pair, prompts[0], {}
        self.layers = model.config.num_hidden_layers
        self.base = record(model, prompts[0])
        if model.config.model_type not in OWN_ATTENTION:  # which would run without the mask that it is not given
            with literal_attention(model, held=self.patterns, forced={}):
                model(torch.tensor([prompts[0]]))
        self.given = record(model, prompts[1])

    @torch.no_grad()
    def estimate(self, line, *, softmax, dropped=None):
        component, layer = line["component"], line["layer"]
        position, head = (None if pd.isna(line[name]) else line[name] for name in ("position", "head"))
        tokens = tokens_of(self.pair, line["role"] if position is None else position)
        frozen = [] if dropped is None else [("attn_out", dropped), ("mlp_out", dropped)]
        constant = {site: self.base[site] for site in frozen}
        sites = [(component, layer, token, head) for token in tokens]
        sites += [(*site, token, None) for site in frozen for token in range(self.pair.positions)]

        def part_of_the_way(step):
            mixed = self.base[component, layer].lerp(self.given[component, layer], step)
            return self.difference({(component, layer): mixed, **constant}, sites)

        if not softmax:
            return slope(part_of_the_way)
        reader = layer + (component in ("head_out", "attn_out", "mlp_out", "resid_post"))
        if reader == self.layers:
            return part_of_the_way(1.0) - part_of_the_way(0.0)
        base, seen = self.base["resid_pre", reader], {}
        if component == "resid_pre":
            patched = self.given[component, layer]
        else:
            hook = places(self.model)[1][reader][0].register_forward_pre_hook(keep_input(seen, "stream"))
            part_of_the_way(1.0)
            hook.remove()
            patched = seen["stream"]
        streams = [("resid_pre", reader, token, None) for token in tokens]
        with literal_attention(self.model, held=seen, forced={}):
            self.difference({("resid_pre", reader): patched}, streams)

        def reading(step):
            pattern = self.patterns[reader].lerp(seen[reader], step)
            stream = {("resid_pre", reader): base.lerp(patched, step)}
            with literal_attention(self.model, held={}, forced={reader: pattern}):
                return self.difference({**stream, **constant}, [*streams, *sites[len(tokens) :]])

        return slope(reading)

    def difference(self, given, sites):
        logits = patched_logits(self.model, self.prompt, given, sites)
        return float(logits[list(self.pair.right)].sum() - logits[list(self.pair.wrong)].sum())


def with_sets(pair):
    """The pair with four right answers and two wrong ones, its own among them."""
    others = [token for token in range(VOCABULARY) if token not in (pair.answer[0], pair.foil[0])]
    return replace(pair, answer_set=(pair.answer[0], *others[:3]), foil_set=(pair.foil[0], others[-1]))


def slope(function):
    """The derivative at 0, by a central difference."""
    return (function(STEP) - function(-STEP)) / (2 * STEP)


def exact_effects(model, pairs, *, direction, **settings):
    """The effect of every patch of a sweep, in logits."""
    table, runs = sweep(model, pairs, direction=direction, **settings), measure_runs(model, pairs)
    base = runs[runs["run"] == ("corrupted" if direction == "denoising" else "clean")].set_index("pair")
    return table["logit_difference"] - table["pair"].map(base["logit_difference"])


@pytest.mark.parametrize("number", range(len(FAMILIES)), ids=FAMILIES)
def test_estimates_and_ranks_equal_difference_quotients(number):
    """Of every component some lines, which together have all layers, corrections, directions and kinds of positions.

    Every other family is asked for a set of right answers and a set of wrong ones.
    """
    model, pair = double_model(FAMILIES[number], 0), random_pair("p", 5, seed=number, subject=(1, 2))
    if number % 2:
        pair = with_sets(pair)
    generator = np.random.default_rng(number)
    for turn, corrections in enumerate(EVERY_CORRECTION):
        if "softmax" in corrections and FAMILIES[number] in OWN_ATTENTION:
            with pytest.raises(ArchitectureError, match="do without the softmax correction"):
                attribute(model, [pair], corrections=corrections)
            continue
        direction, positions = DIRECTIONS[(turn + number) % 2], POSITIONS[(turn + number) % 3]
        settings = {"components": COMPONENTS, "direction": direction, "positions": positions}
        table, oracle = attribute(model, [pair], corrections=corrections, **settings), Oracle(model, pair, direction)
        chosen = table[table["effect"] != 0].groupby("component").sample(2, replace=True, random_state=generator)
        for line in chosen.drop_duplicates(LINES).to_dict("records"):
            softmax = "softmax" in corrections
            expected = oracle.estimate(line, softmax=softmax)
            assert line["effect"] == pytest.approx(expected, rel=1e-6, abs=1e-6), line
            if "dropout" in corrections:
                passes = [oracle.estimate(line, softmax=softmax, dropped=layer) for layer in range(oracle.layers)]
                expected = sum(map(abs, passes)) / (oracle.layers - 1)
            assert line["rank_score"] == pytest.approx(abs(expected), rel=1e-6, abs=1e-6), line


@pytest.mark.parametrize("corrections", [(), ("softmax",)], ids=["plain", "softmax"])
@pytest.mark.parametrize("family", ["gpt2", "llama-grouped"])
def test_estimates_of_small_changes_are_exact(family, corrections):
    """What is wrong with an estimate is of second order: a change ten times smaller leaves a hundredth of the error."""
    model, pair, errors = double_model(family, 3), random_pair("p", 4, seed=5, subject=(1,)), []
    settings = {"components": COMPONENTS, "direction": "noising", "positions": "each"}
    embedding = model.get_input_embeddings().weight.data
    apart = torch.linspace(-1, 1, embedding.shape[1], dtype=torch.float64)
    for size in (1e-2, 1e-3):
        embedding[pair.corrupted[1]] = embedding[pair.clean[1]] + size * apart
        exact = exact_effects(model, [pair], **settings)
        errors.append((attribute(model, [pair], corrections=corrections, **settings)["effect"] - exact).abs().max())
    assert 50 < errors[0] / errors[1] < 200
    assert errors[1] < 1e-2 * exact.abs().max()


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "qwen3-narrow-heads"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_leaves_the_last_block_is_read_out_exactly(family, direction, pairs):
    model = shared_model(family, 0)
    settings = {"components": ("head_out", "attn_out", "mlp_out", "resid_post"), "direction": direction, "layers": [2]}
    table = attribute(model, pairs, corrections=("softmax", "dropout"), **settings)
    np.testing.assert_allclose(table["effect"], exact_effects(model, pairs, **settings), rtol=0, atol=1e-4)
    inside = table["component"] != "resid_post"  # one of the three passes drops their block
    ratio = (table["rank_score"] / table["effect"].abs())[table["effect"] != 0]
    assert ratio[inside].to_numpy() == pytest.approx(1, rel=1e-6)
    assert ratio[~inside].to_numpy() == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_lines_are_those_of_the_sweep(model, pairs, direction, positions):
    settings = {"components": ("mlp_out", "head_out", "embedding", "resid_post"), "layers": [2, 0], "row_budget": 40}
    exact = sweep(model, pairs, direction=direction, positions=positions, **settings)
    for corrections in ((), ("softmax", "dropout")):
        table = attribute(model, pairs, direction=direction, positions=positions, corrections=corrections, **settings)
        assert list(table.columns) == [*LINES, "logit_difference", "effect", "rank_score"]
        pd.testing.assert_frame_equal(table[LINES], exact[LINES])
        start = (table["logit_difference"] - table["effect"]).groupby(table["pair"]).agg(["min", "max"])
        runs = measure_runs(model, pairs)
        base = runs[runs["run"] == ("corrupted" if direction == "denoising" else "clean")].set_index("pair")
        for end in ("min", "max"):
            pd.testing.assert_series_equal(start[end], base["logit_difference"].sort_index(), check_names=False)


@pytest.mark.parametrize("corrections", EVERY_CORRECTION)
def test_identical_activations_have_no_effect_at_all(model, corrections):
    """Before the first token that differs every activation is the same in both runs; so is that of an equal token."""
    pair = random_pair("p", 6, seed=0, subject=(2, 4))
    table = attribute(model, [pair], components=COMPONENTS, corrections=corrections)
    before = table["position"] < 2
    equal = (table["component"] == "embedding") & ~table["position"].isin([2, 4])
    zero = (table["effect"] == 0) & (table["rank_score"] == 0)
    assert zero[before | equal].all()
    assert not zero[(table["position"] == 5) & (table["layer"] == 1)].any()


@pytest.mark.parametrize("corrections", EVERY_CORRECTION)
def test_chunks_and_the_order_of_pairs_change_nothing(model, pairs, corrections):
    whole = attribute(model, pairs, components=COMPONENTS, corrections=corrections)
    single = attribute(model, pairs[::-1], components=COMPONENTS, corrections=corrections, row_budget=1)
    single = pd.concat(single[single["pair"] == pair.pair_id] for pair in pairs).reset_index(drop=True)
    pd.testing.assert_frame_equal(whole, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("corrections", "weight"), [((), 3), (("softmax",), 3 + 2), (("dropout",), 3 + 2)])
def test_no_pass_holds_more_pairs_than_the_budget_allows(model, corrections, weight):
    """A pair weighs a row for each of three layers, of two heads with softmax, and of a fifth of nine with dropout."""
    pairs, seen = [random_pair(str(i), 3, seed=i) for i in range(7)], []
    hook = model.transformer.h[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    attribute(model, pairs, components=("mlp_out",), corrections=corrections, row_budget=3 * weight)
    hook.remove()
    assert max(seen) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails, monkeypatch):
    model, pair = tiny_gpt2(1).train(), random_pair("p", 3, seed=0)
    model.transformer.h[0].requires_grad_(False)
    before = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    known, implementation = set(ALL_ATTENTION_FUNCTIONS), model.config._attn_implementation
    if fails:
        monkeypatch.setattr(torch.autograd, "grad", lambda *arguments, **options: 1 / 0)
    try:
        attribute(model, [pair], corrections=("softmax", "dropout"))
    except ZeroDivisionError:
        assert fails
    assert {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()} == before
    assert (set(ALL_ATTENTION_FUNCTIONS), model.config._attn_implementation) == (known, implementation)
    assert model.training and torch.is_grad_enabled()


def test_frozen_parameters_and_no_grad_give_the_same(pairs):
    model = tiny_gpt2(2)
    expected = attribute(model, pairs, corrections=("softmax", "dropout"))
    with torch.no_grad():
        found = attribute(model.requires_grad_(False), pairs, corrections=("softmax", "dropout"))
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("family", ["gpt2", "llama-grouped"])
def test_half_precision_agrees_with_single(family, pairs):
    settings = {"components": COMPONENTS, "corrections": ("softmax", "dropout")}
    single = attribute(shared_model(family, 0), pairs, **settings)
    half = attribute(tiny_model(family, 0).bfloat16(), pairs, **settings)
    for name in ("logit_difference", "rank_score"):
        assert half[name].corr(single[name]) > 0.99


def test_weights_that_are_elsewhere_between_calls_give_the_same(pairs):
    model, settings = tiny_gpt2(2), {"components": COMPONENTS, "corrections": ("softmax", "dropout")}
    expected = attribute(model, pairs, **settings)
    found = attribute(cpu_offload(model, torch.device("cpu")), pairs, **settings)
    assert next(model.parameters()).device.type == "meta"
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_best_share_of_a_screen_is_exact(model, pairs, direction, positions):
    settings = {"components": ("resid_pre", "head_out", "embedding"), "direction": direction, "positions": positions}
    screen = attribute(model, pairs, corrections=("dropout",), **settings)
    table = screen_and_verify(model, pairs, share=0.15, corrections=("dropout",), **settings)
    assert list(table.columns) == [*screen.columns, "exact"]
    pd.testing.assert_frame_equal(table[[*LINES, "rank_score"]], screen[[*LINES, "rank_score"]])

    site = ["component", "layer", "position" if positions == "each" else "role", "head"]
    ranks = table.groupby(site, dropna=False).agg(score=("rank_score", "mean"), exact=("exact", "mean"))
    assert set(ranks["exact"]) == {0, 1}
    assert ranks["exact"].sum() == np.ceil(0.15 * len(ranks))
    assert ranks["score"][ranks["exact"] == 1].min() >= ranks["score"][ranks["exact"] == 0].max()

    for name, exact in zip(("effect", "logit_difference"), exact_columns(model, pairs, settings), strict=True):
        expected = exact.where(table["exact"], screen[name])
        np.testing.assert_allclose(table[name], expected, rtol=0, atol=1e-4)


def exact_columns(model, pairs, settings):
    return exact_effects(model, pairs, **settings), sweep(model, pairs, **settings)["logit_difference"]


def test_a_screen_of_everything_is_the_sweep(model, pairs):
    table, exact = (
        screen_and_verify(model, pairs, share=1, components=COMPONENTS),
        sweep(model, pairs, components=COMPONENTS),
    )
    assert table["exact"].all()
    np.testing.assert_allclose(table["logit_difference"], exact["logit_difference"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corrections": ("layernorm",)}, "softmax and dropout, not"),
        ({"corrections": "softmax"}, "softmax and dropout, not 'softmax'"),
        ({"direction": "up"}, "direction must be"),
        ({"positions": "some"}, "positions must be"),
        ({"components": ("resid",)}, "components must be"),
        ({"layers": [3]}, "layers must be"),
        ({"row_budget": 0}, "row_budget"),
    ],
)
def test_settings_out_of_range_are_one_sentence(model, pairs, arguments, message):
    with pytest.raises(PatchingError, match=message) as error:
        attribute(model, pairs, **arguments)
    assert "\n" not in str(error.value)


def test_a_screen_of_everything_is_the_sweep_for_sets_of_answers_too(model, pairs):
    """Beside pairs of one answer, so that rows of tokens are filled up."""
    pairs = [with_sets(pairs[0]), *pairs[1:]]
    table, exact = screen_and_verify(model, pairs, share=1), sweep(model, pairs)
    np.testing.assert_allclose(table["logit_difference"], exact["logit_difference"], rtol=0, atol=1e-4)
    runs = measure_runs(model, pairs, metrics=("logit_difference",)).set_index(["run", "pair"])["logit_difference"]
    base = attribute(model, pairs).assign(base=lambda t: t["logit_difference"] - t["effect"]).groupby("pair")["base"]
    for pair in pairs:
        assert base.mean()[pair.pair_id] == pytest.approx(runs["corrupted", pair.pair_id], abs=1e-4)


@pytest.mark.parametrize("share", [0, 1.01])
def test_a_share_is_above_0_and_at_most_1(model, pairs, share):
    with pytest.raises(PatchingError, match="share is the part of the sites"):
        screen_and_verify(model, pairs, share=share)


def test_dropping_the_only_layer_is_refused():
    with pytest.raises(PatchingError, match="one layer only"):
        attribute(tiny_gpt2(0, layers=1), [random_pair("p", 3, seed=0)], corrections=("dropout",))


def test_nan_names_the_pair(pairs):
    model, damaged = tiny_gpt2(0), pairs[1]
    others = {token for pair in pairs if pair is not damaged for token in (*pair.clean, *pair.corrupted)}
    token = next(token for token in damaged.clean if token not in others)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # the output stays whole
    model.transformer.wte.weight.data[token] = torch.nan
    with pytest.raises(PatchingError, match=f"of the pair {damaged.pair_id} are NaN"):
        attribute(model, pairs, components=("mlp_out",))
