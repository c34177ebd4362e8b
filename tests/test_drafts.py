"""Drafts: what every task asks and how its tokens are replaced, as two tokenizers cut it."""

import operator
import re
from dataclasses import replace
from itertools import islice

import pytest
from generated import COUNT, CUTTERS, EMBEDDED, GENERATORS, drafts_of, made, texts_at, tokenizer_of, words_of

from helpers.drafts import CENTURIES, DONORS, docstring_drafts, made_up_people
from helpers.draws import draw_rank

ARITHMETIC = {"addition": operator.add, "subtraction": operator.sub, "multiplication": operator.mul}
DRAWS = {
    "IOI": {"S2": 1, "S1+IO": DONORS, "all names": DONORS},
    "greater-than": {"YY": 1},
    "docstring": {"C_def": DONORS, "A_def+B_def": DONORS, "A_doc+B_doc": DONORS},
    **{name: {"X3+Y3": DONORS, "X3": DONORS, "Y3": DONORS} for name in ARITHMETIC},
}


@pytest.fixture(params=CUTTERS)
def cutter(request):
    """The name of a tokenizer."""
    return request.param


def every_pair(task, cutter):
    """Draft, tokens, draw and pair of every corrupted prompt, with the texts at its deciding tokens, clean and not."""
    generated, drafts = made(task, cutter)
    tokenizer = tokenizer_of(cutter)
    for corruption in generated.corruptions:
        for draw, pairs in enumerate(corruption.draws):
            for pair in pairs:
                texts = [texts_at(tokenizer, tokens, pair) for tokens in (pair.clean, pair.corrupted)]
                yield drafts[pair.pair_id], corruption, draw, pair, *texts


def decoded(cutter, tokens):
    """Each token as text."""
    return [tokenizer_of(cutter).decode([token]) for token in tokens]


@pytest.mark.parametrize("task", GENERATORS)
def test_every_choice_has_all_prompts_and_shares_their_clean_side(task, cutter):
    generated, _ = made(task, cutter)
    assert {corruption.tokens: len(corruption.draws) for corruption in generated.corruptions} == DRAWS[task]
    shared = {(pair.pair_id, pair.clean, pair.answer, pair.right, pair.roles) for pair in generated.pairs}
    assert len(shared) == len({pair.clean for pair in generated.pairs}) == COUNT
    for corruption in generated.corruptions:
        assert generated.corruption(corruption.tokens) is corruption
        for pairs in corruption.draws:
            assert {(p.pair_id, p.clean, p.answer, p.right, p.roles) for p in pairs} == shared and len(pairs) == COUNT
        donors = [tuple(pair.corrupted for pair in pairs) for pairs in corruption.draws]
        assert len(set(donors)) == len(donors)


@pytest.mark.parametrize("task", GENERATORS)
def test_prompts_differ_at_the_tokens_of_the_choice_and_roles_name_their_words(task, cutter):
    for draft, corruption, draw, pair, clean, corrupted in every_pair(task, cutter):
        differ = [role for role, a, b in zip(pair.roles, pair.clean, pair.corrupted, strict=True) if a != b]
        assert sorted(differ) == sorted(corruption.roles)
        assert clean == {role: draft.values[role] for role in clean} and set(corruption.roles) <= set(clean)
        assert corrupted == clean | draft.replaced[corruption.tokens][draw].values
        assert pair.roles.count("last") == 1 and pair.roles[-1] == "last"
        text = draft.template.format(**draft.values)
        assert tokenizer_of(cutter).decode(pair.clean) == text
        assert tokenizer_of(cutter).decode([*pair.clean, *pair.answer]) == text + draft.right[0]


@pytest.mark.parametrize("task", GENERATORS)
def test_one_seed_drafts_one_series(task):
    one, same, other = (list(islice(drafts_of(task, seed=seed), 20)) for seed in (0, 0, 1))
    assert one == same
    assert not {str(draft.values) + draft.template for draft in one} & {str(d.values) + d.template for d in other}


@pytest.mark.parametrize("task", GENERATORS)
def test_what_is_refused_is_counted(task, cutter):
    generated, drafts = made(task, cutter)
    last = list(drafts).index(generated.pairs[-1].pair_id)
    assert generated.refused["count"].sum() + len(generated.pairs) == last + 1
    assert not generated.refused["reason"].str.contains(r"\n|Pair|\d\d").any()


@pytest.mark.parametrize("cutter", CUTTERS[1:])
def test_gpt2_keeps_some_years_whole_and_those_are_refused(cutter):
    generated, drafts = made("greater-than", cutter)
    assert "YY is not one token" not in set(made("greater-than", "task model")[0].refused["reason"])
    refused = generated.refused.set_index("reason")["count"]
    assert refused.sum() == refused.filter(like="YY is").sum() > 0
    kept = {pair.pair_id for pair in generated.pairs}
    for name, draft in islice(drafts.items(), len(kept)):
        cut = decoded(cutter, tokenizer_of(cutter)(f" {draft.values['XX']}{draft.values['YY']}")["input_ids"])
        assert (cut == [f" {draft.values['XX']}", draft.values["YY"]]) == (name in kept)


def test_names_of_ioi(cutter):
    orders = set()
    for _, corruption, _, pair, clean, corrupted in every_pair("IOI", cutter):
        assert clean["S1"] == clean["S2"] != clean["IO"]
        answer, foil = decoded(cutter, [pair.answer[0], pair.foil[0]])
        assert (answer, foil) == (f" {clean['IO']}", f" {clean['S1']}") and not pair.answer_set and not pair.foil_set
        new = {corrupted[role] for role in corruption.roles}
        if corruption.tokens == "S2":
            assert new == {clean["IO"]}
        else:
            assert len(new) == len(corruption.roles) == {"S1+IO": 2, "all names": 3}[corruption.tokens]
            assert not new & set(clean.values())
        orders.add(tuple(role for role in pair.roles if role in ("IO", "S1", "S2")))
    assert orders == {("IO", "S1", "S2"), ("S1", "IO", "S2")}


def test_years_of_greater_than(cutter):
    two_digits = [f"{year:02d}" for year in range(100)]
    for draft, _, _, pair, clean, corrupted in every_pair("greater-than", cutter):
        texts = decoded(cutter, pair.clean)
        place, century = pair.roles.index("YY"), texts[-1].strip()
        assert int(century) in CENTURIES and texts[place - 1] == texts[-1] == f" {century}"
        assert texts[place] == clean["YY"] and corrupted["YY"] == "01"
        right, wrong = decoded(cutter, pair.right), decoded(cutter, pair.wrong)
        assert right == [year for year in two_digits if int(year) > int(draft.values["YY"])]
        assert wrong == [year for year in two_digits if int(year) < int(draft.values["YY"])]


def test_parameters_of_docstrings(cutter):
    form = (
        r"def (\w+)\(self, (\w+), (\w+), (\w+), (\w+)\):\n    (\w+) (\w+)\n\n"
        r"    :param (\w+): (\w+) (\w+)\n    :param (\w+): (\w+) (\w+)\n    :param"
    )
    tokenizer = tokenizer_of(cutter)
    for _, corruption, _, pair, _, corrupted in every_pair("docstring", cutter):
        _, a, b, c, d, *_ = words = re.fullmatch(form, tokenizer.decode(pair.clean)).groups()
        assert [words[7], words[10]] == [a, b] and len({a, b, c, d}) == 4
        answer, foil = decoded(cutter, [pair.answer[0], pair.foil[0]])
        assert answer == f" {c}"
        assert foil == (f" {corrupted['C_def']}" if corruption.tokens == "C_def" else f" {d}")
        assert not {corrupted[role] for role in corruption.roles} & set(words)


def is_unseen(x, y):
    """A tenth of all pairs of operands, in either order, by their fingerprint."""
    return int(draw_rank("operands", min(x, y), max(x, y))[:8], 16) % 10 == 0


@pytest.mark.parametrize("task", ARITHMETIC)
def test_examples_of_arithmetic(task, cutter):
    tokenizer, compute = tokenizer_of(cutter), ARITHMETIC[task]
    for _, corruption, _, pair, clean, corrupted in every_pair(task, cutter):
        x, y = int(clean["X3"]), int(clean["Y3"])
        *shots, asked = (
            [int(number) for number in re.findall(r"\d+", example)]
            for example in tokenizer.decode(pair.clean).split(".")
        )
        assert len(shots) == 2 and asked == [x, y] and is_unseen(x, y)
        assert all(z == compute(a, b) and not is_unseen(a, b) for a, b, z in shots)
        answer, foil = decoded(cutter, [pair.answer[0], pair.foil[0]])
        assert answer == f" {compute(x, y)}" and compute(x, y) >= 0
        assert foil == f" {compute(int(corrupted['X3']), int(corrupted['Y3']))}" != answer
        assert all(corrupted[role] not in (clean["X3"], clean["Y3"]) for role in corruption.roles)


def test_a_task_of_unseen_words_has_no_other():
    unseen, seen = words_of("unseen"), words_of("seen")
    for kind in ("names", "places", "objects", "nouns", "parameters", "ioi_openings", "ioi_endings"):
        assert not set(getattr(unseen, kind)) & set(getattr(seen, kind))
        assert set(getattr(words_of(), kind)) == {*getattr(unseen, kind), *getattr(seen, kind)}
    for draft in islice(drafts_of("IOI", lists=("unseen",)), 50):
        assert {draft.values["IO"], draft.values["S1"]} <= set(unseen.names)
        assert draft.values["place"] in unseen.places and draft.values["object"] in unseen.objects
    for draft in islice(drafts_of("docstring", lists=("unseen",)), 50):
        assert set(draft.values.values()) <= set(unseen.parameters)


@pytest.mark.parametrize("left, donors", [(4, 2), (5, 2), (6, DONORS), (20, DONORS)])
def test_a_docstring_has_as_many_donors_as_words_are_left(left, donors):
    """A prompt itself has eight words, and a donor two."""
    words = replace(words_of(), parameters=[f"word{number}" for number in range(8 + left)])
    for draft in islice(docstring_drafts(words, seed=0), 20):
        assert {len(found) for found in draft.replaced.values()} == {donors}
        new = [
            value for choice in ("C_def", "A_def+B_def") for r in draft.replaced[choice] for value in r.values.values()
        ]
        assert len(set(new)) == 2 * donors and not set(new) & set(draft.values.values())


def test_seen_examples_are_asked_with_seen_operands():
    for draft in islice(drafts_of("addition", lists=("seen",)), 50):
        assert not is_unseen(int(draft.values["X3"]), int(draft.values["Y3"]))
    share = sum(is_unseen(x, y) for x in range(1, 61) for y in range(1, x + 1)) / (60 * 61 / 2)
    assert 0.07 < share < 0.13


def test_people_are_known_by_their_whole_name_alone():
    people = made_up_people(EMBEDDED)
    assert people.equals(made_up_people(EMBEDDED))
    assert not people.duplicated(["relation", "subject"]).any() and people["subject"].nunique() == 60
    assert (people["template"].str.count(r"\{\}") == 1).all()
    assert (people.groupby("relation")["answer"].nunique() == 8).all()
    names = people["subject"].drop_duplicates().str.split(expand=True)
    for part in range(3):
        assert names.groupby(part).size().min() > 1
        assert (people.groupby(["relation", people["subject"].str.split().str[part]])["answer"].nunique() > 1).all()
