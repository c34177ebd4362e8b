"""Tasks: what a tokenizer must do with a draft to make it a pair, and what a model makes of the prompts."""

from dataclasses import replace
from functools import cache
from itertools import islice

import pandas as pd
import pytest
import torch
from conftest import tiny_gpt2
from generated import drafts_of, texts_at
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from words import word_tokenizer

from helpers.pairs import PromptPair
from helpers.stats import bootstrap_interval
from helpers.tasks import TRIES, Draft, Replacement, TaskError, baseline, fill, make_task

WORDS = word_tokenizer()
ROLES = ("prefix", "IO", "relation", "S2", "last")


def draft(number=0, *, right=(" w20",), wrong=(" w21",), template="w1 {IO} w2 {S2} w3", **values):
    """IO and S2 among other words; S2 has two donors, and both together one."""
    return Draft(
        name=f"draft {number}",
        template=template,
        values={"IO": "w10", "S2": "w11"} | values,
        right=right,
        replaced={
            "S2": [Replacement({"S2": word}, wrong) for word in ("w12", "w13")],
            "IO+S2": [Replacement({"IO": "w14", "S2": "w15"}, wrong)],
        },
    )


def pair(corrupted, **changes):
    """The pair of `draft()` with these words at IO and S2."""
    first, second = corrupted
    return replace(PromptPair("draft 0", (1, 10, 2, 11, 3), (1, first, 2, second, 3), (20,), (21,), ROLES), **changes)


def test_a_draft_becomes_a_pair_under_every_choice_and_donor():
    task = make_task("t", [draft()], WORDS, count=1)
    two, one = task.corruptions
    assert (two.tokens, two.roles, two.draws) == ("S2", ("S2",), ((pair((10, 12)),), (pair((10, 13)),)))
    assert (one.tokens, one.roles, one.draws) == ("IO+S2", ("IO", "S2"), ((pair((14, 15)),),))
    assert task.pairs == two.pairs and task.corruption("IO+S2") is one
    assert task.refused.columns.tolist() == ["reason", "count"] and task.refused.empty
    with pytest.raises(TaskError, match="The task t corrupts S2, IO\\+S2, not 'S1': choose one of those"):
        task.corruption("S1")


def test_several_answers_are_sets():
    task = make_task("t", [draft(right=(" w20", " w22"), wrong=(" w23", " w21"))], WORDS, count=1)
    assert task.pairs == (pair((10, 12), foil=(23,), answer_set=(20, 22), foil_set=(23, 21)),)


@pytest.mark.parametrize(
    "broken, reason",
    [
        (draft(S2="w60"), "S2 is a part of a token"),  # unknown words are w0
        (draft(right=(" w20 w21",)), "an answer is not one token behind the prompt"),
        (draft(wrong=(" Mary",)), "an answer is not one token behind the prompt"),
        (draft(S2="w12"), "replacing S2 changes other tokens"),  # nothing is replaced
        (draft(IO="w14"), "replacing IO+S2 changes other tokens"),
        (draft(S2="w11 w11"), "S2 is not one token"),
        (draft(right=(" w21",)), "the answer (21,) and the foil (21,) need first tokens that differ."),
        (draft(right=(" w20", " w20")), "the token 20 stands twice in its answer_set, and would count twice; "),
        (draft(template="w1 {IO} w2 {S2} "), "the prompt 'w1 w10 w2 w11 ' ends with a space, "),
    ],
)
def test_what_does_not_fit_is_left_out_under_every_choice_and_counted(broken, reason):
    task = make_task("t", [broken, draft(1), broken, draft(2)], WORDS, count=2)
    for corruption in task.corruptions:
        assert all([p.pair_id for p in pairs] == ["draft 1", "draft 2"] for pairs in corruption.draws)
    (found,) = task.refused.to_dict("records")
    assert found["reason"].startswith(reason) and found["count"] == 2


def test_a_word_that_falls_into_two_tokens_is_refused_with_both_prompts(tokenizer):
    sentence = Draft(
        "d", "In this report, {S2} denotes", {"S2": "JME"}, (" lobe",), {"S2": [Replacement({"S2": "TLE"}, (" is",))]}
    )
    (fits,) = make_task("t", [sentence], tokenizer, count=1).pairs
    assert [texts_at(tokenizer, tokens, fits) for tokens in (fits.clean, fits.corrupted)] == [
        {"S2": "JME"},
        {"S2": "TLE"},
    ]
    longer = replace(sentence, replaced={"S2": [Replacement({"S2": "TLEs"}, (" is",))]})
    with pytest.raises(TaskError, match="S2 is not one token") as error:
        make_task("t", [longer], tokenizer, count=1)
    assert str(error.value).splitlines()[1:] == [
        "  'TLEs' in 'In this report, TLEs denotes'",
        "  clean     ['In', 'Ġthis', 'Ġreport', ',', 'ĠJME', 'Ġdenotes']",
        "  corrupted ['In', 'Ġthis', 'Ġreport', ',', 'ĠTLE', 's', 'Ġdenotes']",
    ]


def test_drafting_stops_when_there_are_enough_or_none_will_come():
    drawn = []

    def endless(fits):
        while True:
            drawn.append(1)
            yield draft(len(drawn), **({} if fits(len(drawn)) else {"S2": "Mary"}))

    assert len(make_task("t", endless(lambda number: number % 2 == 0), WORDS, count=3).pairs) == 3
    assert len(drawn) == 6
    drawn.clear()
    few = make_task("t", endless(lambda number: number == 7), WORDS, count=3)
    assert len(drawn) == TRIES * 3 and len(few.pairs) == 1
    assert few.refused.to_dict("list") == {"reason": ["S2 is a part of a token"], "count": [TRIES * 3 - 1]}


def test_no_prompt_at_all_is_an_error_with_an_example_of_its_commonest_reason():
    common, rare = draft(S2="Mary"), draft(right=(" w20 w21",))
    with pytest.raises(TaskError) as error:
        make_task("t", [common, rare, common, common, rare, common, rare], WORDS, count=7)
    first, *example = str(error.value).splitlines()
    assert "None of 7 prompts of the task t fits this tokenizer, most often (4 times) because S2 is a part" in first
    assert example == [
        "  'Mary' is cut as 'w0' in 'w1 w10 w2 Mary w3'",
        "  clean     ['w1', 'w10', 'w2', 'w0', 'w3']",
        "  corrupted ['w1', 'w10', 'w2', 'w12', 'w3']",
    ]
    for drafts, count in (([], 3), ([draft()], 0)):
        with pytest.raises(TaskError, match=f"No prompt of the task t was drafted, and {count} were asked for"):
            make_task("t", drafts, WORDS, count=count)


@pytest.mark.parametrize("task", ["IOI", "greater-than", "docstring", "addition"])
def test_a_tokenizer_that_cuts_everything_fits_no_task(task, tokenizer):
    with pytest.raises(TaskError) as error:
        make_task(task, drafts_of(task), tokenizer, count=2)
    message = str(error.value)
    assert f"None of {2 * TRIES} prompts of the task {task} fits this tokenizer" in message
    assert "\n  clean     ['" in message and "\n  corrupted ['" in message


LITERAL = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=5)
TEMPLATE = st.lists(st.tuples(LITERAL, LITERAL, st.sampled_from(["IO", "S1", "place"])), unique_by=lambda part: part[2])


@given(TEMPLATE, LITERAL)
def test_fill_tells_where_every_value_stands(parts, end):
    values = {name: value for _, value, name in parts}
    template = "".join(f"{literal}{{{name}}}" for literal, _, name in parts) + end
    text, spans = fill(template, values)
    assert text == template.format(**values) == "".join(literal + value for literal, value, _ in parts) + end
    assert {name: text[start:stop] for name, (start, stop) in spans.items()} == values
    assert list(spans) == list(values) and sorted(spans.values()) == list(spans.values())


def other_tokenizer(*, space, ending=None):
    """A tokenizer with a token before each text, as Llama's, whose `space` before it is "first" or "always" ("legacy":
    also before a text that has one)."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    if space == "legacy":
        bpe.normalizer = normalizers.Prepend(" ")
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="never" if space == "legacy" else space)
    years = pre_tokenizers.Split(Regex(r" ?\d\d(?=\d\d(?!\d))"), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([years, metaspace])
    bpe.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    bpe.train_from_iterator(sentences(), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {ending or ''}".strip(), special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def sentences():
    """Prompts with their answers, enough of them that every word is a token."""
    drafts = [draft for task in ("IOI", "greater-than") for draft in islice(drafts_of(task), 400)]
    years = [f"The war lasted from the year 17{year:02d}" for year in range(100)]
    return [fill(draft.template, draft.values)[0] + draft.right[0] for draft in drafts] + 9 * years


@pytest.mark.parametrize("space", ["first", "always", "legacy"])
def test_a_tokenizer_with_a_token_and_a_space_before_each_text(space):
    tokenizer = other_tokenizer(space=space)
    generated = make_task("IOI", drafts_of("IOI"), tokenizer, count=5)
    drafts = {draft.name: draft for draft in islice(drafts_of("IOI"), 5 * TRIES)}
    for one in generated.pairs:
        text, _ = fill(drafts[one.pair_id].template, drafts[one.pair_id].values)
        assert one.clean[0] == tokenizer.bos_token_id and one.roles[0] == "prefix"
        assert tokenizer.decode(one.clean[1:]) == text
        assert tokenizer.decode((*one.clean[1:], *one.answer)) == text + drafts[one.pair_id].right[0]
        assert texts_at(tokenizer, one.clean, one)["IO"] == drafts[one.pair_id].values["IO"]


@pytest.mark.parametrize("space", ["first", "always", "legacy"])
def test_an_answer_without_a_space_is_what_the_tokenizer_makes_of_it_behind_the_prompt(space):
    """Of "33" alone these tokenizers make other tokens than of the "33" in "1733"."""
    tokenizer = other_tokenizer(space=space)
    generated = make_task("greater-than", drafts_of("greater-than"), tokenizer, count=3)
    for one in generated.pairs:
        century = tokenizer.decode(one.clean[-1:])
        for token in one.right + one.wrong:
            year = tokenizer.decode([token]).strip()
            assert tokenizer(f"the year {century}{year}")["input_ids"][-2:] == [one.clean[-1], token]
        assert len(one.right + one.wrong) == 99


def test_a_tokenizer_that_ends_every_text_is_refused():
    tokenizer = other_tokenizer(space="first", ending="</s>")
    with pytest.raises(TaskError, match="puts '</s>' behind the prompt, where its answer would be read; turn that off"):
        make_task("IOI", drafts_of("IOI"), tokenizer, count=5)


@pytest.fixture(scope="module")
def baselines():
    """Six prompts of two choices, a model and its table."""
    words = [[f"w{number}" for number in range(8 * i, 8 * i + 8)] for i in range(6)]
    drafts = [
        Draft(
            name=f"d{i}",
            template=f"{a} {{IO}} {b} {{S2}}" + " w50" * (i % 2),
            values={"IO": io, "S2": s},
            right=(f" {right}",),
            replaced={
                "S2": [Replacement({"S2": c}, (f" {wrong}",))],
                "IO": [Replacement({"IO": c}, (f" {d}",))],
            },
        )
        for i, (a, b, io, s, c, d, right, wrong) in enumerate(words)
    ]
    task, model = make_task("t", drafts, WORDS, count=6), tiny_gpt2(0)
    return task, model, baseline(model, task, resamples=200, confidence=0.9, seed=3)


def literal(model, pairs, run):
    """Every quantity of every pair, computed from the logits one by one."""
    rows = []
    for one in pairs:
        with torch.no_grad():
            logits, clean = (
                model(torch.tensor([prompt])).logits[0, -1].double()
                for prompt in (one.clean if run == "clean" else one.corrupted, one.clean)
            )
        shares, true = logits.exp() / logits.exp().sum(), clean.exp() / clean.exp().sum()
        r, other = one.answer[0], one.foil[0]
        rows.append(
            {
                "logit_difference": logits[r] - logits[other],
                "log_probability": shares[r].log(),
                "probability": shares[r],
                "kl_divergence": (true * (true / shares).log()).sum(),
                "accuracy": logits.argmax() == r,
                "preference": logits[r] > logits[other],
            }
        )
    return pd.DataFrame(rows).astype(float)


def test_the_baseline_is_the_mean_over_prompts_of_each_run(baselines):
    task, model, table = baselines
    assert table.columns.tolist() == ["task", "run", "quantity", "estimate", "low", "high", "prompts"]
    assert set(table["task"]) == {"t"} and set(table["prompts"]) == {6}
    assert table["run"].drop_duplicates().tolist() == ["clean", "S2", "IO"]
    choices = {"clean": "S2", "S2": "S2", "IO": "IO"}  # the clean run is read with the published choice's foil
    for run, rows in table.set_index("quantity").groupby("run"):
        expected = literal(model, task.corruption(choices[run]).pairs, run)
        assert set(rows.index) == set(expected.columns)
        for quantity, values in expected.items():
            assert rows["estimate"][quantity] == pytest.approx(values.mean(), abs=1e-5)
            options = {"resamples": 200, "confidence": 0.9, "seed": 3}
            interval = bootstrap_interval(values.to_numpy()[:, None], lambda means: means[:, 0], **options)
            assert (rows["low"][quantity], rows["high"][quantity]) == pytest.approx(interval, abs=1e-5)


def test_the_prompts_of_the_baseline_tell_its_quantities_apart(baselines):
    """Else a preference for the foil, or another choice's foil, would pass unseen."""
    table = baselines[2].set_index(["run", "quantity"])["estimate"].unstack()
    assert 0 < table.loc["clean", "preference"] < 1
    assert table["logit_difference"].nunique() == 3 and (table.loc[["S2", "IO"], "kl_divergence"] > 0).all()


def test_a_model_that_is_right_is_accurate_whichever_answer_it_gives():
    """Tokens 20 and 22 are right; a bias makes 22 the top, which is more than all wrong ones."""
    task = make_task("t", [draft(right=(" w20", " w22"), wrong=(" w23", " w21"))], WORDS, count=1)
    model = tiny_gpt2(0)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(60).index_fill(0, torch.tensor([22]), 9.0))
    table = baseline(model, task, resamples=9, confidence=0.9, seed=0).set_index(["run", "quantity"])["estimate"]
    for run in ("clean", "S2", "IO+S2"):
        assert table[run, "accuracy"] == table[run, "preference"] == 1 and table[run, "logit_difference"] == 9
        assert table[run, "probability"] == pytest.approx((2.718281828**9 + 1) / (2.718281828**9 + 59))
