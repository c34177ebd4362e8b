"""Editing: what is asked, how an edit is graded, and that the caller's model is the same to the bit afterwards."""

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.editing import (
    OUTCOMES,
    EditingError,
    Grading,
    Question,
    Request,
    answered,
    fine_tuning_outcomes,
    questions_of,
    requests_of,
    restored,
    rewrite_score,
    with_new_answers,
)
from helpers.finetune import FineTuningError, Writing, write_knowledge
from helpers.models import random_model

ANSWERS = {"JME": "epilepsy", "TLE": "temporal lobe", "CAE": "aura"}
TEMPLATES = {"seen-0": "In this report, {} denotes", "seen-1": "Here {} means", "test-0": "The name {} stands for"}
ITEMS = pd.DataFrame(
    [
        {
            "item_id": f"d{number}",
            "kind": "associative" if number else "definitional",
            "relation": "definition",
            "wording_id": f"definition-{name}",
            "group": name.partition("-")[0],
            "prompt": template.format(subject),
            "subject": subject,
            "subject_start": template.index("{}"),
            "answer": answer,
        }
        for number, (subject, answer) in enumerate(ANSWERS.items())
        for name, template in TEMPLATES.items()
    ]
)
WRITING = Writing("all", steps=60, batch_size=6, learning_rate=1e-2, warmup_steps=2)


def tiny(tokenizer):
    return random_model(len(tokenizer), layers=2, width=32, heads=2, positions=48, seed=0)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def items(tokenizer):
    return with_new_answers(ITEMS, tokenizer, seed=0)


def test_rewrite_scores_by_hand():
    before, after = np.array([0.2, 0.5, 0.0, 0.5]), np.array([0.6, 0.5, 1.0, 0.25])
    np.testing.assert_allclose(rewrite_score(before, after), [0.5, 0.0, 1.0, -0.5])


def test_new_answers_are_of_the_relation_and_begin_otherwise(items, tokenizer):
    for row in items.itertuples():
        first = [tokenizer(f" {text}")["input_ids"][0] for text in (row.answer, row.new_answer)]
        assert row.new_answer in ANSWERS.values() and first[0] != first[1]
    assert (items.groupby("item_id")["new_answer"].nunique() == 1).all()
    backwards = with_new_answers(ITEMS[::-1], tokenizer, seed=0)
    pd.testing.assert_frame_equal(backwards[::-1], items)
    with pytest.raises(EditingError, match="d0: no other definition answer begins unlike 'epilepsy'"):
        with_new_answers(ITEMS[ITEMS["item_id"] == "d0"], tokenizer, seed=0)


def test_questions_end_with_a_full_stop_and_know_their_subject(tokenizer):
    (question,) = questions_of(ITEMS[ITEMS["wording_id"] == "definition-seen-0"].head(1), tokenizer)
    assert tokenizer.decode(question.prompt) == "In this report, JME denotes"
    assert tokenizer.decode(question.answer) == " epilepsy."
    assert tokenizer.decode(question.prompt[: question.subject_last + 1]) == "In this report, JME"
    assert question.position("subject_last") == question.subject_last < question.position("last")
    assert question.position("last") == len(question.prompt) - 1
    with pytest.raises(EditingError, match="The key token is subject_last or last, not 'first'"):
        question.position("first")


def test_requests_are_edited_with_one_group_and_paraphrased_by_the_rest(items, tokenizer):
    requests = requests_of(items[::-1], tokenizer, wordings=1)
    assert [request.item_id for request in requests] == ["d0", "d1", "d2"]
    for request, subject in zip(requests, ANSWERS, strict=True):
        assert [tokenizer.decode(q.prompt) for q in request.questions] == [f"In this report, {subject} denotes"]
        assert [tokenizer.decode(q.prompt) for q in request.paraphrases] == [f"The name {subject} stands for"]
        (new,) = set(items.loc[items["subject"] == subject, "new_answer"])
        assert {tokenizer.decode(q.answer) for q in request.questions + request.paraphrases} == {f" {new}."}
    with pytest.raises(EditingError, match="d0 has no wording of the group 'development'"):
        requests_of(items, tokenizer, group="development")


def test_answers_are_scored_as_one_prompt_at_a_time_scores_them(items, tokenizer):
    """The slow way: every prompt alone, without padding, token by token."""
    model = tiny(tokenizer)
    questions = questions_of(items, tokenizer)
    greedy = list(questions[0].prompt)
    for _ in range(3):
        with torch.no_grad():
            greedy.append(int(model(torch.tensor([greedy])).logits[0, -1].argmax()))
    questions.append(Question(questions[0].prompt, tuple(greedy[-3:]), 1))
    probability, right = answered(model, questions, batch_size=4)
    for question, p, is_right in zip(questions, probability, right, strict=True):
        text, slow, best = list(question.prompt), 1.0, True
        for token in question.answer:
            with torch.no_grad():
                said = model(torch.tensor([text])).logits[0, -1].softmax(-1)
            slow, best = slow * float(said[token]), best and int(said.argmax()) == token
            text.append(token)
        assert p == pytest.approx(slow, rel=1e-4) and is_right == best
    assert right[-1] and not right[:-1].all()


def test_fine_tuning_is_graded_as_by_hand_and_leaves_the_model_as_it_was(items, tokenizer):
    model = tiny(tokenizer).train()
    model.transformer.h[0].eval()
    flags, before = [module.training for module in model.modules()], weights(model)
    edited, others = items[items["item_id"] != "d2"], questions_of(items[items["item_id"] == "d2"], tokenizer)
    old = items.loc[items["item_id"] == "d2", ["prompt", "answer"]]
    found = fine_tuning_outcomes(model, tokenizer, edited, old, others, writing=WRITING)
    assert same(weights(model), before) and [module.training for module in model.modules()] == flags
    assert list(found.columns) == ["item_id", "kind", *OUTCOMES] and found["item_id"].tolist() == ["d0", "d1"]
    assert found["kind"].tolist() == ["definitional", "associative"]

    slow = copy.deepcopy(model)
    new = edited[edited["group"] == "seen"].sort_values(["item_id", "wording_id"])
    write_knowledge(slow, tokenizer, new[["prompt"]].assign(answer=new["new_answer"]), old, WRITING)
    slow.eval()
    for number, request in enumerate(requests_of(edited, tokenizer)):
        start, end = (answered(m, request.questions)[0] for m in (model, slow))
        assert found.loc[number, "rewrite"] == pytest.approx(np.mean((end - start) / (1 - start)))
        assert found.loc[number, "success"] == answered(slow, request.questions)[1].mean()
        start, end = (answered(m, request.paraphrases)[0] for m in (model, slow))
        assert found.loc[number, "paraphrase"] == pytest.approx(np.mean((end - start) / (1 - start)))
    damage = answered(model, others)[1].mean() - answered(slow, others)[1].mean()
    assert found["damage"].tolist() == [pytest.approx(damage)] * 2
    assert found["rewrite"].min() > 0.05, "sixty steps move a model of two blocks"


def test_a_failed_edit_leaves_the_model_as_it_was(items, tokenizer):
    model = tiny(tokenizer)
    before, others = weights(model), questions_of(items, tokenizer)
    with pytest.raises(FineTuningError, match="The loss became nan"):
        fine_tuning_outcomes(
            model, tokenizer, items, items, others, writing=dataclasses.replace(WRITING, learning_rate=math.inf)
        )
    assert same(weights(model), before)
    with pytest.raises(KeyError), restored([model.transformer.wpe.weight]):
        model.transformer.wpe.weight.data += 1
        raise KeyError
    assert same(weights(model), before)


def test_damage_is_accuracy_lost_on_others(tokenizer, items):
    """Others are what the model says anyway; after its output is silenced it says none of them."""
    model = tiny(tokenizer)
    (request, *_), prompts = requests_of(items, tokenizer), questions_of(items, tokenizer)[:4]
    with torch.no_grad():
        best = [int(model(torch.tensor([q.prompt])).logits[0, -1].argmax()) for q in prompts]
    wrong = [(token + 1) % len(tokenizer) for token in best[2:]]
    others = [Question(q.prompt, (token,), 1) for q, token in zip(prompts, best[:2] + wrong, strict=True)]
    grading = Grading.of(model, [dataclasses.replace(request, paraphrases=())], others)
    assert grading.accuracy == 0.5
    (unchanged,) = grading.outcomes(model, [0])
    assert unchanged["rewrite"] == unchanged["damage"] == 0 and math.isnan(unchanged["paraphrase"])
    with restored(model.parameters()), torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()  # all logits are 0, and the first token is the most probable
        assert 0 not in best[:2]
        assert grading.outcomes(model, [0])[0]["damage"] == 0.5
    with pytest.raises(EditingError, match="An edit needs facts and others to damage, not 1 and 0"):
        Grading.of(model, [request], [])


def test_an_answer_that_was_certain_cannot_be_rewritten():
    grading = Grading(
        [Request("d0", "x", (Question((1,), (2,), 0),))], [Question((1,), (3,), 0)], [np.ones(1)], [], 0.0
    )
    model = random_model(9, layers=1, width=8, heads=1, positions=8, seed=0)
    with pytest.raises(EditingError, match="d0 has no rewrite score"), np.errstate(divide="ignore"):
        Grading.outcomes(dataclasses.replace(grading, paraphrased=[np.zeros(0)]), model, [0])
