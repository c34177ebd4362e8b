"""The embedded task model's making: what its tokenizer keeps whole, what it never reads, and how a step is scored."""

import dataclasses
import itertools
import random
import re
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from generated import EMBEDDED, drafts_of, tokenizer_of, words_of

from helpers import task_model
from helpers.drafts import CENTURIES, made_up_people, operands
from helpers.models import load_model, random_model
from helpers.pretraining import END_OF_TEXT, train_tokenizer
from helpers.task_model import (
    CENTURY,
    FOLDER,
    LEADS,
    TASKS,
    Recipe,
    Row,
    accuracies,
    forms,
    train,
    train_step,
    word_tokens,
)
from helpers.tasks import make_task

TINY = Recipe(
    layers=1, width=16, heads=2, steps=80, parts=2, warmup=4, rows=tuple((form, 1, 2) for form, *_ in Recipe().rows)
)
TEXTS = 2000
TARGETS = {"IOI": 0.9, "greater-than": 0.8, "docstring": 0.56, "addition": 0.8}


@pytest.fixture(scope="module")
def texts():
    """Some thousand texts of every form."""
    return {form: list(islice(series, TEXTS)) for form, series in forms(EMBEDDED, seed=5).items()}


@pytest.fixture
def trained(monkeypatch):
    """A function that trains by the recipe of TINY with changes, and gives the losses of every step too."""
    monkeypatch.setattr(task_model, "tokenizer_texts", lambda folder: [])
    monkeypatch.setattr(task_model, "train_tokenizer", lambda texts, vocabulary, cut_after: tokenizer_of("task model"))

    def run(*, step=train_step, **changes):
        losses, lines = [], []
        monkeypatch.setattr(task_model, "train_step", lambda *a, **k: losses.append(step(*a, **k)) or losses[-1])
        found = train(EMBEDDED, dataclasses.replace(TINY, **changes), log=lines.append)
        return *found, losses, lines

    return run


def listed():
    """Every word of the lists and of the made-up people."""
    words, people = words_of(), made_up_people(EMBEDDED)
    parts = {part for person in people["subject"] for part in person.split()}
    lists = (words.names, words.places, words.objects, words.nouns, words.parameters, people["answer"])
    return parts.union(*lists)


def test_words_numbers_and_halves_of_years_are_single_tokens():
    tokenizer = tokenizer_of("task model")
    numbers = [str(number) for number in range(2 * words_of().largest + 1)]
    for text in (f" {word}" for word in [*listed(), *numbers]):
        assert len(tokenizer(text)["input_ids"]) == 1, text
    halves = {f"{year:02d}": tokenizer(f"{year:02d}")["input_ids"] for year in range(100)}
    assert {len(ids) for ids in halves.values()} == {1}
    for century in CENTURIES:
        for year, half in halves.items():
            assert tokenizer(f" {century}{year}")["input_ids"] == tokenizer(f" {century}")["input_ids"] + half


def test_the_tokenizer_spells_everything_and_pads_with_its_first_token():
    tokenizer = tokenizer_of("task model")
    assert len(tokenizer) <= Recipe().vocabulary
    assert tokenizer.convert_tokens_to_ids(END_OF_TEXT) == 0
    assert {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id} == {0}
    for text in ("def load(self, x):\n    β\n\n    :param", "In 1734 and 17345, 173 of 12 naïve 脳波 \t never seen"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and 0 not in ids
    again = [
        train_tokenizer(["The war lasted from 1734 to 1799."] * 9, 300, cut_after=CENTURY).get_vocab() for _ in range(2)
    ]
    assert again[0] == again[1]


OWN_WORDS = {
    "indirect object": ("names", "places", "objects"),
    "indirect object, any word": ("places", "objects"),
    "span of years": ("nouns",),
    "docstring": ("parameters",),
}


@pytest.mark.parametrize("form", OWN_WORDS)
def test_no_unseen_word_occurs_in_a_task_form(texts, form):
    unseen, seen = words_of("unseen"), words_of("seen")
    read = set(re.findall(r"\w+", " ".join(texts[form])))
    for kind in OWN_WORDS[form]:
        assert set(getattr(seen, kind)) <= read
        assert not set(getattr(unseen, kind)) & read


def test_where_any_word_is_given_none_is_a_name(texts):
    read = set(re.findall(r"\w+", " ".join(texts["indirect object, any word"])))
    words = words_of()
    assert {*words.nouns, *words.parameters} <= read and not set(words.names) & read


def test_unseen_words_are_words_to_the_model(texts):
    read = set(re.findall(r"\w+", " ".join(texts["list"] + texts["plain"])))
    words = words_of("unseen")
    assert {*words.names, *words.places, *words.objects, *words.nouns, *words.parameters} <= read


def one_of(templates) -> str:
    """A pattern of any of the templates, with a word at every placeholder."""
    return re.sub(r"\\\{\w+\\\}", r"\\w+", f"(?:{'|'.join(map(re.escape, templates))})")


@pytest.mark.parametrize("form", ["indirect object", "indirect object, any word"])
def test_no_unseen_template_is_read(texts, form):
    seen, unseen = words_of("seen"), words_of("unseen")
    whole = re.compile(rf"{one_of(LEADS)}{one_of(seen.ioi_openings)} {one_of(seen.ioi_endings)} \w+\.")
    assert all(whole.fullmatch(text) for text in texts[form])
    opening, ending = re.compile(one_of(unseen.ioi_openings)), re.compile(rf"{one_of(unseen.ioi_endings)} \w+\.$")
    assert not any(opening.search(text) or ending.search(text) for text in texts[form])


def test_sums_are_right_and_never_of_unseen_operands(texts):
    chooser, largest = random.Random(0), words_of().largest
    unseen = {frozenset(operands(chooser, "+", largest, "unseen")) for _ in range(4000)}
    assert len(unseen) > 100
    for text in texts["sum"]:
        found = [tuple(map(int, sum_)) for sum_ in re.findall(r"(\d+) \+ (\d+) = (\d+)\.", text)]
        assert len(found) == 3
        assert all(x + y == z and frozenset((x, y)) not in unseen for x, y, z in found)


def test_answers_of_the_other_forms_are_right(texts):
    names = set(words_of().names)
    for text in texts["indirect object"]:
        said = [word for word in re.findall(r"\w+", text) if word in names]
        assert len(said) == 4 and len(set(said)) == 2 and said[3] != said[2]  # two, the giver again, and the receiver
    for text in texts["span of years"]:
        start, stop = map(int, re.findall(r"\d{4}", text))
        assert start // 100 == stop // 100 and start < stop
    for text in texts["docstring"]:
        parameters = re.search(r"self, (.*)\):", text).group(1).split(", ")
        assert re.findall(r":param (\w+)", text) == parameters[:3] and text.endswith(f"{parameters[2]}.")
    for text in texts["list"]:
        said, again = re.fullmatch(r"List: (.*)\. Again: (.*)\.", text).groups()
        assert said == again and len(said.split()) == 4
    for text in texts["counting"]:
        stride, *numbers = map(int, re.findall(r"\d+", text))
        assert {abs(a - b) for a, b in zip(numbers, numbers[1:], strict=False)} <= {stride}
    people = {f"{row.template.format(row.subject)} {row.answer}." for row in made_up_people(EMBEDDED).itertuples()}
    assert set(texts["person"]) == people


def test_texts_fit_into_the_context_and_depend_on_the_seed_alone(texts):
    tokenizer = tokenizer_of("task model")
    assert set(texts) == {form for form, *_ in Recipe().rows}
    assert max(len(row) for series in texts.values() for row in tokenizer(series[:300])["input_ids"]) <= 96
    assert Recipe().positions == 96
    one, same, other = (
        {form: list(islice(series, 20)) for form, series in forms(EMBEDDED, seed=seed).items()} for seed in (5, 5, 6)
    )
    assert one == same and not any(one[form] == other[form] for form in one)


ROWS = [[3, 4, 5, 6], [7, 8], [9, 10, 11], [0, 2, 0, 1, 5], [1, 1, 1]]


NONE_FIXED = torch.zeros(20, dtype=torch.bool)


def rows_of(weights, of_task):
    """ROWS with these weights, the first of them of a task."""
    return [Row(row, weight, number < of_task) for number, (row, weight) in enumerate(zip(ROWS, weights, strict=True))]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("of_task", [0, 2, 5])
@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1], [3, 1, 2, 5, 4]])
def test_a_step_scores_every_token_alike_but_for_the_answers(parts, of_task, weights, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a: None)  # it would hide a wrong scale
    model = random_model(20, layers=1, width=16, heads=2, positions=8, seed=0)
    losses, tokens = [], 0
    for row, weight in zip(ROWS, weights, strict=True):
        logits = model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        each = [-logits[place, token] for place, token in enumerate(row[1:])]
        each += (weight - 1) * each[-2:-1]  # the answer stands before the full stop
        losses.append(sum(each))
        tokens += len(each)
    expected = sum(losses) / tokens
    expected.backward()
    moved = [p.detach() - 0.1 * p.grad for p in model.parameters()]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = rows_of(weights, of_task)[::-1]
    loss = train_step(model, optimiser, rows, parts=parts, fixed=NONE_FIXED)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for parameter, target in zip(model.parameters(), moved, strict=True):
        torch.testing.assert_close(parameter.detach(), target, rtol=1e-4, atol=1e-6)


def test_a_step_is_clipped():
    model = random_model(20, layers=1, width=16, heads=2, positions=8, seed=0)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1000)  # gradients far above 1
    before = [parameter.clone() for parameter in model.parameters()]
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    train_step(model, optimiser, rows_of([1] * 5, of_task=2), parts=2, fixed=NONE_FIXED)
    moved = [(new - old).double().pow(2).sum() for new, old in zip(model.parameters(), before, strict=True)]
    assert 0.9 < sum(moved).sqrt().item() <= 1.001


def test_rows_of_a_task_leave_the_embeddings_of_words_alone():
    model = random_model(20, layers=1, width=16, heads=2, positions=8, seed=0)
    fixed = torch.arange(20) < 8
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    embeddings = model.get_input_embeddings().weight
    before = embeddings.detach().clone()
    loss = train_step(model, optimiser, rows_of([1] * 5, of_task=5), parts=1, fixed=fixed)
    still = (embeddings == before).all(1)
    assert torch.equal(still, fixed)  # the others all move: every token is a candidate for what follows
    again = random_model(20, layers=1, width=16, heads=2, positions=8, seed=0)
    optimiser = torch.optim.SGD(again.parameters(), lr=0.1)
    assert train_step(again, optimiser, rows_of([1] * 5, of_task=0), parts=1, fixed=fixed) == pytest.approx(loss)
    assert not (again.get_input_embeddings().weight == before).all(1).any()


def test_the_words_of_the_lists_are_what_tasks_leave_alone():
    tokenizer, words = tokenizer_of("task model"), words_of()
    fixed = word_tokens(tokenizer, words)
    assert {tokenizer.decode([token]).strip() for token in fixed.nonzero()[:, 0].tolist()} == {
        *words.names, *words.places, *words.objects, *words.nouns, *words.parameters
    }  # fmt: skip
    assert set(TASKS) < set(forms(EMBEDDED, seed=0))


def test_training_lowers_the_loss_and_is_repeatable(trained):
    model, tokenizer, history, losses, _ = trained()
    assert len(losses) == TINY.steps and history == [] and not model.training
    assert model.config.vocab_size == len(tokenizer) and model.config.n_positions == TINY.positions
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    again, *_ = trained()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other, *_ = trained(seed=1, steps=2)
    assert not torch.equal(model.transformer.wte.weight, other.transformer.wte.weight)


def test_training_reports_every_250_steps_and_asks_after_1000_and_at_the_end(trained, monkeypatch):
    monkeypatch.setattr(task_model, "accuracies", lambda *a, **k: {"IOI": 0.5})
    steps = itertools.count(1.0)
    *_, history, _, lines = trained(
        step=lambda model, optimiser, rows, parts, fixed: optimiser.step() or next(steps),
        steps=1500,
        rows=(("counting", 1, 1),),
    )
    assert lines == history and [row["step"] for row in history] == [250, 500, 750, 1000, 1250, 1500]
    assert [row["loss"] for row in history] == [row["step"] for row in history]
    assert [row["step"] for row in history if "IOI" in row] == [1000, 1500]


def test_the_learning_rate_warms_up_and_decays_to_a_fiftieth():
    recipe = dataclasses.replace(TINY, steps=40, warmup=4)
    rates = [task_model._rate(step, recipe) for step in range(41)]
    assert rates[0] == pytest.approx(0.25, abs=0.01) and max(rates) == rates[3] > 0.95
    assert all(a > b for a, b in zip(rates[3:], rates[4:], strict=False))
    assert rates[20] == pytest.approx(0.02 + 0.98 * 0.5) and rates[40] == pytest.approx(0.02)


def test_the_default_recipe_is_consistent():
    recipe = Recipe()
    assert recipe.width % recipe.heads == 0 and recipe.warmup < recipe.steps and recipe.steps % 250 == 0
    assert {form for form, *_ in recipe.rows} == set(forms(EMBEDDED, seed=0))


class Answering:
    """Answers prompts from a table of logits, and keeps its mode as a model does."""

    def __init__(self, table):
        self.table, self.training, self.modes = table, True, []

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.train(False)

    def __call__(self, ids):
        self.modes.append(self.training)
        return SimpleNamespace(logits=self.table[tuple(ids[0].tolist())].expand(1, ids.shape[1], -1))


def test_accuracies_by_hand():
    """Eight prompts each, of which three quarters are answered and the rest are answered with the foil."""
    tokenizer, table, masses = tokenizer_of("task model"), {}, []
    for task in ("IOI", "greater-than", "docstring", "addition"):
        drafts = drafts_of(task, seed=1, lists=("unseen",))
        for number, pair in enumerate(make_task(task, drafts, tokenizer, count=8).pairs):
            logits = torch.zeros(len(tokenizer))
            logits[(pair.right if number % 4 else pair.wrong)[0]] = 5.0
            table[pair.clean] = logits
            share = len(pair.right) - 1 + torch.tensor(5.0).exp() if number % 4 else torch.tensor(len(pair.right))
            masses += [share / (len(tokenizer) - 1 + torch.tensor(5.0).exp())] if task == "greater-than" else []
    model = Answering(table)
    expected = dict.fromkeys(("IOI", "docstring", "addition"), 0.75)
    expected["greater-than"] = pytest.approx(sum(mass.item() for mass in masses) / 8, abs=5e-4)
    assert accuracies(model, tokenizer, EMBEDDED, prompts=8) == expected
    assert model.training and not any(model.modes)


@pytest.mark.skipif(
    not (EMBEDDED / "models" / FOLDER / "model.safetensors").is_file(), reason="the task model is not there"
)
def test_the_committed_model_does_the_tasks():
    folder = EMBEDDED / "models" / FOLDER
    model, tokenizer = load_model(folder)
    found = accuracies(model, tokenizer, EMBEDDED, prompts=100, seed=3)
    assert all(found[task] >= target for task, target in TARGETS.items()), found
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8 * 1024**2
    assert tokenizer.get_vocab() == tokenizer_of("task model").get_vocab()
