"""The published protocol: which modules it visits, what each replay must give, against plain forward hooks."""

import copy

import pytest
import torch
from conftest import tiny_gpt2
from words import word_tokenizer

from helpers.published import (
    PHRASES,
    PUBLISHED_FIGURES,
    PUBLISHED_ITEMS,
    PublishedFigure,
    PublishedItem,
    _phrase_difference,
    by_construction,
    published_sweep,
    visited_modules,
)

LAYERS = 2
QUESTION = "w11 w12 w13 w14"
EQUAL = PublishedItem("equal", QUESTION, "w21 w22 w23", "w31 w22 w33", "w5 w6 w7", "w8 w9", "made up")
UNEQUAL = PublishedItem("unequal", QUESTION, "w21 w22 w23", "w31 w32", "w5 w6 w7", "w8 w9", "made up")


@pytest.fixture(scope="module")
def networks():
    return [tiny_gpt2(seed, layers=LAYERS, width=16, heads=2) for seed in (0, 1)]


@pytest.fixture(scope="module")
def sweeps(networks):
    """The sweep of the equal-length item in each network, and whether it left the network as it was."""
    tables = []
    for network in networks:
        before = copy.deepcopy(network.state_dict())
        tables.append(published_sweep(network, word_tokenizer(), EQUAL))
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    return tables


def tokens(item: PublishedItem) -> dict[str, torch.Tensor]:
    """Both prompts, by reading the number off every word."""
    texts = {"clean": f"{item.question} {item.clean_answer}", "corrupted": f"{item.question} {item.corrupted_answer}"}
    return {name: torch.tensor([[int(word[1:]) for word in text.split()]]) for name, text in texts.items()}


def phrase_difference(logits: torch.Tensor) -> float:
    """Of w5, w6, w7 against w8, w9: written out."""
    last = logits[0, -1].tolist()
    return (last[5] + last[6] + last[7]) / 3 - (last[8] + last[9]) / 2


@torch.no_grad()
def hooked(model, prompt: torch.Tensor, name: str, replacement=None):
    """The logits, and one module's output, by a plain forward hook that may replace it."""
    held = []

    def hook(module, inputs, output):
        held.append(output)
        return replacement

    handle = model.get_submodule(name).register_forward_hook(hook)
    logits = model(prompt).logits
    handle.remove()
    return logits, held[0]


def recovery_by_hooks(model, item: PublishedItem, name: str, direction: str) -> float:
    """Recovered (denoising) or destroyed (noising) share of one replay."""
    prompts = tokens(item)
    clean, corrupted = (phrase_difference(model(prompts[run]).logits) for run in ("clean", "corrupted"))
    base, source = ("corrupted", "clean") if direction == "denoising" else ("clean", "corrupted")
    _, given = hooked(model, prompts[source], name)
    patched = phrase_difference(hooked(model, prompts[base], name, given)[0])
    return ((patched - corrupted) if direction == "denoising" else (clean - patched)) / (clean - corrupted)


@pytest.mark.parametrize("layers", [1, 3])
def test_gpt2_has_one_linear_module_and_four_conv1d_in_every_block(layers):
    modules = visited_modules(tiny_gpt2(0, layers=layers, width=8, heads=2))
    assert [name for name, kind in modules.items() if kind == "Linear"] == ["lm_head"]
    assert sorted(name for name, kind in modules.items() if kind == "Conv1D") == sorted(
        f"transformer.h.{layer}.{part}"
        for layer in range(layers)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    )
    assert {name for name, kind in modules.items() if kind not in ("Linear", "Conv1D")} == {
        "transformer.wte", "transformer.drop", "transformer.ln_f", *(f"transformer.h.{i}" for i in range(layers))
    }  # fmt: skip


def test_sites_by_construction_recover_1_in_any_network_and_others_do_not(sweeps):
    for table in sweeps:
        fixed = table[table["by_construction"]]
        assert len(fixed) == 2 * (LAYERS + 4)
        assert (fixed["recovery"] - 1).abs().max() < 1e-4
        assert (table[~table["by_construction"]]["recovery"] - 1).abs().min() > 1e-3
        assert set(table["note"]) == {""}


def test_no_other_module_of_the_network_fixes_the_rest_of_the_forward_pass(networks):
    """Every module is replayed, not only the visited ones, so that the list of bottlenecks is shown to be complete."""
    for model in networks:
        visited = visited_modules(model)
        complete = {name for name in visited if by_construction(name, visited[name])}
        # Not modules of their own: the whole network, its body, and the list of blocks, which is never called.
        others = {n for n, _ in model.named_modules()} - {"", "transformer", "transformer.h"}
        others -= {n for n in others if n.endswith(("attn_dropout",))}  # named in GPT-2, but not called
        found = set()
        for name in sorted(others):
            if all(abs(recovery_by_hooks(model, EQUAL, name, d) - 1) < 1e-4 for d in ("denoising", "noising")):
                found.add(name)
        assert found == complete


def test_a_projection_adds_nothing_to_what_its_only_reader_makes_of_it(sweeps):
    """c_attn holds all that attention reads of the residual stream, and c_fc all that the MLP reads."""
    for table in sweeps:
        recovery = table.set_index(["direction", "site"])["recovery"]
        for direction in ("denoising", "noising"):
            for layer in range(LAYERS):
                block = recovery[direction].filter(like=f"transformer.h.{layer}.")
                attention, mlp = (block.filter(like=f".{part}.") for part in ("attn", "mlp"))
                assert attention.iloc[0] == pytest.approx(attention.iloc[1], abs=1e-4) and len(attention) == 2
                assert mlp.iloc[0] == pytest.approx(mlp.iloc[1], abs=1e-4) and len(mlp) == 2
                assert abs(attention.iloc[0] - mlp.iloc[0]) > 1e-3


def test_every_number_equals_plain_hooks(networks, sweeps):
    for model, table in zip(networks, sweeps, strict=True):
        assert len(table) == 2 * len(visited_modules(model)) == 2 * (5 * LAYERS + 4)
        ends = {run: phrase_difference(model(prompt).logits) for run, prompt in tokens(EQUAL).items()}
        for row in table.to_dict("records"):
            expected = recovery_by_hooks(model, EQUAL, row["site"], row["direction"])
            assert row["recovery"] == pytest.approx(expected, abs=1e-4), row
            assert (row["clean"], row["corrupted"]) == pytest.approx((ends["clean"], ends["corrupted"]), abs=1e-5)
            gained = expected * (ends["clean"] - ends["corrupted"])
            patched = ends["corrupted"] + gained if row["direction"] == "denoising" else ends["clean"] - gained
            assert row["patched"] == pytest.approx(patched, abs=1e-4)
            assert row["module"] == type(model.get_submodule(row["site"])).__name__


def test_phrase_difference_by_hand():
    logits = torch.zeros(1, 2, 5)
    logits[0, -1] = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0])
    logits[0, 0] = 100.0  # only the last position is read
    assert _phrase_difference(logits, [[1, 2], [0]]) == 3.0
    assert _phrase_difference(logits, [[3], [4, 4, 0]]) == pytest.approx(10 - 41 / 3)  # a repeated token counts twice


def test_prompts_of_unequal_length_leave_the_unembedding_alone(networks):
    table = published_sweep(networks[0], word_tokenizer(), UNEQUAL)
    head = table["site"] == "lm_head"
    assert list(table[head]["recovery"]) == [1.0, 1.0] and list(table[head]["note"]) == ["", ""]
    assert table[~head][["patched", "recovery"]].isna().all(axis=None)
    assert set(table[~head]["note"]) == {"shape error"} and len(table) == 2 * (5 * LAYERS + 4)
    assert table[["clean", "corrupted"]].notna().all(axis=None)


def test_a_sweep_leaves_the_outputs_and_the_hooks_of_the_model_as_they_were():
    model = tiny_gpt2(2, layers=1, width=8, heads=2)
    prompt = tokens(EQUAL)["clean"]
    before = model(prompt).logits
    published_sweep(model, word_tokenizer(), EQUAL)
    assert torch.equal(model(prompt).logits, before) and not model.training


def test_the_items_are_answered_inside_their_prompts_and_scored_by_the_same_phrases():
    assert [item.name for item in PUBLISHED_ITEMS] == ["associative", "definitional"]
    for item in PUBLISHED_ITEMS:
        assert (item.clean_phrase, item.corrupted_phrase) == PHRASES
        assert item.clean_answer != item.corrupted_answer
        assert item.question.endswith("?") and item.clean_answer.endswith(".") and item.corrupted_answer.endswith(".")
    assert [item.provenance.split(":")[0] for item in PUBLISHED_ITEMS] == ["verbatim", "reconstructed"]


def test_every_published_figure_names_modules_that_are_visited():
    for layers in (1, 3):
        modules = visited_modules(tiny_gpt2(0, layers=layers, width=8, heads=2))
        for figure in PUBLISHED_FIGURES:
            assert set(figure.candidates(layers)) <= set(modules)
            assert figure.item in {item.name for item in PUBLISHED_ITEMS}
    figure = PublishedFigure("x", 0.5, "associative", ("attn.c_attn", "attn.c_proj"))
    assert figure.candidates(3) == [f"transformer.h.{i}.attn.{part}" for i in (0, 2) for part in ("c_attn", "c_proj")]
    assert len(figure.candidates(1)) == 2
