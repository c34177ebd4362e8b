"""The published protocol: which modules it visits, what each replay must give, against plain forward hooks."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from asked import EQUAL, TOKENIZERS, UNEQUAL, real_tokenizer
from conftest import tiny_gpt2
from words import word_tokenizer

from helpers.claimed import PUBLISHED_FIGURES, PublishedFigure, published_comparison, site_profile
from helpers.published import (
    OTHER_PHRASES,
    PHRASES,
    PUBLISHED,
    PUBLISHED_ITEMS,
    Protocol,
    PublishedError,
    PublishedItem,
    by_construction,
    describe_items,
    equal_length_twin,
    items_for,
    phrase_difference,
    published_sweep,
    visited_modules,
)

LAYERS = 2


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


def by_hand(logits: torch.Tensor) -> float:
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
    clean, corrupted = (by_hand(model(prompts[run]).logits) for run in ("clean", "corrupted"))
    base, source = ("corrupted", "clean") if direction == "denoising" else ("clean", "corrupted")
    _, given = hooked(model, prompts[source], name)
    patched = by_hand(hooked(model, prompts[base], name, given)[0])
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
        complete = by_construction(model)
        assert complete <= set(visited)
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
        ends = {run: by_hand(model(prompt).logits) for run, prompt in tokens(EQUAL).items()}
        for row in table.to_dict("records"):
            expected = recovery_by_hooks(model, EQUAL, row["site"], row["direction"])
            assert row["recovery"] == pytest.approx(expected, abs=1e-4), row
            assert (row["clean"], row["corrupted"]) == pytest.approx((ends["clean"], ends["corrupted"]), abs=1e-5)
            gained = expected * (ends["clean"] - ends["corrupted"])
            patched = ends["corrupted"] + gained if row["direction"] == "denoising" else ends["clean"] - gained
            assert row["patched"] == pytest.approx(patched, abs=1e-4)
            start = ends["corrupted" if row["direction"] == "denoising" else "clean"]
            assert row["effect"] == pytest.approx(patched - start, abs=1e-4)
            assert row["module"] == type(model.get_submodule(row["site"])).__name__


def test_phrase_difference_by_hand():
    logits = torch.tensor([[1.0, 2.0, 6.0, 10.0, 20.0], [0.0, 0.0, 0.0, 1.0, 0.0]])
    assert phrase_difference(logits, ([1, 2], [0])).tolist() == [3.0, 0.0]
    repeated = phrase_difference(logits[0], ([3], [4, 4, 0]))  # a repeated token counts twice
    assert float(repeated) == pytest.approx(10 - 41 / 3)


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


def test_no_difference_between_the_runs_is_no_number():
    same = replace(EQUAL, corrupted_answer=EQUAL.clean_answer)
    table = published_sweep(tiny_gpt2(0, layers=1, width=8, heads=2), word_tokenizer(), same)
    assert table["recovery"].isna().all() and (table["clean"] == table["corrupted"]).all()
    assert set(table["note"]) == {""}


READINGS = [
    (Protocol(read="last word"), -2, lambda z: (z[5] + z[6] + z[7]) / 3 - (z[8] + z[9]) / 2),
    (Protocol(first_only=True), -1, lambda z: z[5] - z[8]),
    (Protocol(own=True), -1, lambda z: (z[21] + z[22] + z[23]) / 3 - (z[31] + z[22] + z[33]) / 3),
    (Protocol(corrupted="question", read="question", own=True, first_only=True), 3, lambda z: z[21] - z[31]),
]


@pytest.mark.parametrize("protocol, position, score", READINGS)
def test_every_other_reading_equals_plain_hooks_and_does_not_disturb_its_neighbours(
    networks, sweeps, protocol, position, score
):
    protocol = replace(protocol, name="other")
    table = published_sweep(networks[0], word_tokenizer(), EQUAL, protocols=(PUBLISHED, protocol))
    published = table[table["protocol"] == "published"].reset_index(drop=True)
    assert published["patched"].tolist() == pytest.approx(sweeps[0]["patched"].tolist(), abs=1e-6)
    clean = tokens(EQUAL)["clean"]
    corrupted = tokens(EQUAL)["corrupted"]
    if protocol.corrupted == "question":
        corrupted = clean.clone()
        corrupted[0, 2] = 42  # "w40 w41" is too long to take the place of "w13"
    model, rows = networks[0], table[(table["protocol"] == "other") & (table["direction"] == "denoising")]
    assert len(rows) == len(visited_modules(model))
    for row in rows.to_dict("records"):
        _, given = hooked(model, clean, row["site"])
        patched = hooked(model, corrupted, row["site"], given)[0][0, position].tolist()
        ends = [score(model(prompt).logits[0, position].tolist()) for prompt in (clean, corrupted)]
        assert [row["clean"], row["corrupted"]] == pytest.approx(ends, abs=1e-4)
        assert row["patched"] == pytest.approx(score(patched), abs=1e-4), row


def test_a_prompt_without_its_end_is_read_as_the_end_of_a_shorter_prompt(networks):
    """The protocols read earlier instead of cutting the prompt off: no token sees what follows it."""
    whole, model = tokens(EQUAL)["clean"], networks[0]
    position = Protocol(read="last word").position(EQUAL, word_tokenizer(), whole[0].tolist())
    shorter = model(whole[:, : position + 1]).logits[0, -1]
    assert position == whole.shape[1] - 2
    assert torch.allclose(model(whole).logits[0, position], shorter, atol=1e-5)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_associative_pair_is_of_equal_length(name):
    """The study's own two prompts, verbatim; the embedded tokenizer must not break what GPT-2's gives."""
    prompts = PUBLISHED.prompts(PUBLISHED_ITEMS[0], real_tokenizer(name))
    assert len(prompts["clean"]) == len(prompts["corrupted"]) == {"embedded": 22, "gpt2": 26}[name]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_twin_is_of_equal_length_where_the_definitional_item_need_not_be(name):
    tokenizer = real_tokenizer(name)
    _, associative_twin, definitional, twin = items_for(tokenizer)
    assert len({len(prompt) for prompt in PUBLISHED.prompts(associative_twin, tokenizer).values()}) == 1
    assert associative_twin.corrupted_answer != PUBLISHED_ITEMS[0].corrupted_answer
    lengths = [len(prompt) for prompt in PUBLISHED.prompts(definitional, tokenizer).values()]
    assert lengths == {"embedded": [10, 10], "gpt2": [17, 16]}[name]
    assert {len(prompt) for prompt in PUBLISHED.prompts(twin, tokenizer).values()} == {lengths[0]}
    assert replace(twin, name="definitional", corrupted_answer="", provenance="") == replace(
        definitional, corrupted_answer="", provenance=""
    )
    assert twin.corrupted_answer != definitional.corrupted_answer and twin.provenance.startswith("twin")
    described = describe_items(tokenizer).set_index("item")["tokens"]
    assert described["definitional"] == " / ".join(map(str, lengths))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_question_about_another_subject_is_as_long_and_differs_in_the_subject_alone(name):
    tokenizer = real_tokenizer(name)
    for item in items_for(tokenizer):
        prompts = Protocol(corrupted="question").prompts(item, tokenizer)
        assert len(prompts["clean"]) == len(prompts["corrupted"]) and prompts["clean"] != prompts["corrupted"]
        answer = len(tokenizer(f" {item.clean_answer}")["input_ids"])
        assert prompts["clean"][-answer:] == prompts["corrupted"][-answer:]
        assert item.question.count(item.subject) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_read_and_scored_where_a_reader_expects_them(name):
    tokenizer, item = real_tokenizer(name), PUBLISHED_ITEMS[0]
    prompt = PUBLISHED.prompts(item, tokenizer)["clean"]
    read = {at: Protocol(read=at).position(item, tokenizer, prompt) for at in ("full stop", "last word", "question")}
    assert {at: tokenizer.decode([prompt[i]]) for at, i in read.items()} == {
        "full stop": ".", "last word": " epilepsy", "question": "?"
    }  # fmt: skip
    assert [tokenizer.decode(t) for t in PUBLISHED.scored(item, tokenizer)] == list(PHRASES)
    assert [tokenizer.decode(t) for t in Protocol(spaced=True).scored(item, tokenizer)] == [f" {p}" for p in PHRASES]
    first = Protocol(own=True, spaced=True, first_only=True).scored(item, tokenizer)
    assert [len(t) for t in first] == [1, 1]
    for token, answer in zip(first, (item.clean_answer, item.corrupted_answer), strict=True):
        assert f" {answer}".startswith(tokenizer.decode(token))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_other_subject_is_a_cue_to_copy_what_is_scored(name):
    """Whatever is scored, in any protocol, is in none of the other questions, but for what the subject leaves there."""
    tokenizer = real_tokenizer(name)
    for item in PUBLISHED_ITEMS:
        texts = (*PHRASES, item.clean_answer, item.corrupted_answer, *item.other_answers)
        scored = {token for text in texts for space in ("", " ") for token in tokenizer(space + text)["input_ids"]}
        fitting = item.other_questions(tokenizer)
        assert len(fitting) >= 3 and len(set(fitting)) == len(fitting)
        for question in fitting:
            before, after = item.question.split(item.subject)
            subject = question.removeprefix(before).removesuffix(after)
            assert subject in item.others and not scored & set(tokenizer(f" {subject}")["input_ids"]), subject


def test_every_other_subject_that_fits_can_be_asked_about():
    assert EQUAL.other_questions(word_tokenizer()) == ["w11 w12 w42 w14", "w11 w12 w43 w14"]
    first, second = (Protocol(name=str(n), corrupted="question", other=n) for n in (0, 1))
    assert second.prompts(EQUAL, word_tokenizer())["corrupted"] == [11, 12, 43, 14, 21, 22, 23]
    model = tiny_gpt2(0, layers=1, width=8, heads=2)
    together = published_sweep(model, word_tokenizer(), EQUAL, protocols=(first, second)).set_index("protocol")
    for protocol in (first, second):
        alone = published_sweep(model, word_tokenizer(), EQUAL, protocols=(protocol,))
        assert together.loc[protocol.name, "patched"].tolist() == pytest.approx(alone["patched"].tolist(), abs=1e-6)
    assert together.loc["0", "corrupted"].iloc[0] != pytest.approx(together.loc["1", "corrupted"].iloc[0], abs=1e-4)


def test_another_linear_module_is_visited_and_is_not_called_by_construction():
    model = tiny_gpt2(0, layers=1, width=8, heads=2)
    convolution, linear = model.transformer.h[0].mlp.c_fc, torch.nn.Linear(8, 32)
    linear.weight.data, linear.bias.data = convolution.weight.data.T.contiguous(), convolution.bias.data
    model.transformer.h[0].mlp.c_fc = linear
    table = published_sweep(model, word_tokenizer(), EQUAL).set_index(["site", "direction"])
    row = table.loc[("transformer.h.0.mlp.c_fc", "denoising")]
    assert row["module"] == "Linear" and not row["by_construction"] and abs(row["recovery"] - 1) > 1e-3


def test_an_item_without_a_fitting_replacement_says_what_to_do():
    long = replace(EQUAL, clean_answer="w1 w2 w3 w4 w5 w6 w7 w8 w9")
    with pytest.raises(
        PublishedError, match=r"has 9 tokens.* have 2, 3, 3: add an answer to the equal item's other_answers"
    ):
        equal_length_twin(long, word_tokenizer())
    with pytest.raises(PublishedError, match="has 4 tokens.* have 5, 6: add a subject to the equal item that has 4"):
        replace(EQUAL, others=("w1 w2", "w1 w2 w3")).other_questions(word_tokenizer())


def test_the_items_are_answered_inside_their_prompts_and_scored_by_the_same_phrases():
    assert [item.name for item in PUBLISHED_ITEMS] == ["associative", "definitional"]
    for item in PUBLISHED_ITEMS:
        assert (item.clean_phrase, item.corrupted_phrase) == PHRASES
        assert item.clean_answer != item.corrupted_answer
        assert item.question.endswith("?") and item.clean_answer.endswith(".") and item.corrupted_answer.endswith(".")
    assert [item.provenance.split(":")[0] for item in PUBLISHED_ITEMS] == ["verbatim", "reconstructed"]
    assert not {*PHRASES} & {*OTHER_PHRASES}


def test_every_published_figure_names_modules_that_are_visited():
    for layers in (1, 3):
        modules = visited_modules(tiny_gpt2(0, layers=layers, width=8, heads=2))
        for figure in PUBLISHED_FIGURES:
            assert set(figure.candidates(layers)) <= set(modules)
            assert figure.item in {item.name for item in PUBLISHED_ITEMS}
    convolutional = next(figure for figure in PUBLISHED_FIGURES if figure.name == "convolutional layer")
    modules = visited_modules(tiny_gpt2(0, layers=3, width=8, heads=2))
    assert set(convolutional.candidates(3)) == {n for n, k in modules.items() if k == "Conv1D" and ".h.1." not in n}
    figure = PublishedFigure("x", 0.5, "associative", ("attn.c_attn", "attn.c_proj"))
    assert figure.candidates(3) == [f"transformer.h.{i}.attn.{part}" for i in (0, 2) for part in ("c_attn", "c_proj")]
    assert len(figure.candidates(1)) == 2


def test_published_figures_stand_beside_the_median_of_each_group(sweeps):
    named = [t.assign(item="associative", group="base", network=str(n)) for n, t in enumerate(sweeps)]
    sweep = pd.concat(named, ignore_index=True)
    compared = published_comparison(sweep, layers=LAYERS).drop_duplicates("may mean").set_index("may mean")
    for site in ("transformer.h.0.mlp.c_fc", "transformer.h.1.attn.c_proj"):
        found = [t[(t["site"] == site) & (t["direction"] == "noising")]["recovery"].item() for t in sweeps]
        assert compared.loc[site, "base, noising"] == pytest.approx(sum(found) / 2)
    assert compared.loc["transformer.h.0.mlp.c_fc", "published"] == 0.56


def test_the_drawn_profile_holds_all_sites_by_construction_under_one_name(sweeps):
    drawn = site_profile(sweeps[0].assign(group="base", network="a"))
    assert list(dict.fromkeys(drawn["site"])) == [
        *(f"h.{i}.{p}" for i in range(LAYERS) for p in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
        f"by construction ({LAYERS + 4} sites)",
    ]
    assert len(drawn) == 5 * LAYERS + 4
    failed = published_sweep(tiny_gpt2(0, layers=1, width=8, heads=2), word_tokenizer(), UNEQUAL)
    assert len(site_profile(failed.assign(group="base", network="a"))) == 1
