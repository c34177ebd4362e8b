"""Rank-one edits: the update by hand, its parts against slow ones, and a compiled model with one editable place."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tiny_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from known import FACTS, LAYERS, LOOKUP, compiled
from tiny import tiny_model

from helpers.editing import EditingError, Question, Request, answered
from helpers.rank_one import RankOne, find_keys, find_values, rank_one_outcomes, rank_one_updates, second_moment

BLOCK = 1


def request(name, *, seed, lengths=(5, 7)):
    draw = np.random.default_rng(seed)
    questions = [
        Question(tuple(draw.integers(1, VOCABULARY, n).tolist()), tuple(draw.integers(1, VOCABULARY, 2).tolist()), 2)
        for n in lengths
    ]
    return Request(name, "definitional", tuple(questions), (questions[0],))


REQUESTS = [request("a", seed=1), request("b", seed=2, lengths=(4,)), request("c", seed=3)]
OTHERS = [question for number in range(3) for question in request("x", seed=10 + number).questions]
TEXTS = [question.prompt + question.answer for question in OTHERS]


def slow_inputs(model, block, text):
    """The projection's input at every token of one text, alone."""
    seen = []
    hook = model.transformer.h[block].mlp.act.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    with torch.no_grad():
        model(torch.tensor([text]))
    hook.remove()
    return seen[0]


def test_an_update_by_hand():
    """C = diag(4, 1), k = (2, 1): C⁻¹k = (1/2, 1), kᵀC⁻¹k = 2; Wk + b = 2 + 3 + 1 = 6, v = 10, so (1/4, 1/2) · 4."""
    weight, bias, moment = (
        torch.tensor([[1.0], [3.0]]),
        torch.tensor([1.0]),
        torch.diag(torch.tensor([4.0, 1.0])).double(),
    )
    (update,) = rank_one_updates(weight, bias, torch.tensor([[2.0, 1.0]]), torch.tensor([[10.0]]), moment, ridge=0.0)
    torch.testing.assert_close(update, torch.tensor([[1.0], [2.0]]))
    # A ridge of 2 in units of the mean of the diagonal adds 5: C = diag(9, 6), C⁻¹k = (2/9, 1/6), k·C⁻¹k = 11/18.
    (update,) = rank_one_updates(weight, bias, torch.tensor([[2.0, 1.0]]), torch.tensor([[10.0]]), moment, ridge=2.0)
    torch.testing.assert_close(update, torch.tensor([[16 / 11], [12 / 11]]))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**16))
def test_an_update_gives_the_key_its_value_at_the_least_cost(inner, width, seed):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    weight, bias, key, value, texts = (
        normal(inner, width),
        normal(width),
        normal(inner),
        normal(width),
        normal(30, inner),
    )
    moment = texts.T @ texts / 30
    (update,) = rank_one_updates(weight, bias, key[None], value[None], moment, ridge=0.0)
    torch.testing.assert_close(key @ (weight + update) + bias, value)
    assert torch.linalg.matrix_rank(update) <= 1
    # Any other change with the same effect on the key moves the texts' outputs more: sum of squares over the texts.
    other = normal(inner, width)
    other = other - torch.outer(key, key @ other) / (key @ key)  # does nothing to the key
    cost = [((texts @ change) ** 2).sum() for change in (update, update + 0.1 * other)]
    assert cost[0] <= cost[1] + 1e-9


def test_a_moment_without_inverse_and_a_key_of_nothing_are_refused():
    weight, bias = torch.ones(2, 1), torch.zeros(1)
    options = {"keys": torch.ones(1, 2), "values": torch.ones(1, 1)}
    with pytest.raises(EditingError, match="no inverse: give more texts or a ridge"):
        list(rank_one_updates(weight, bias, **options, moment=torch.zeros(2, 2).double(), ridge=0.0))
    options["keys"] = torch.zeros(1, 2)
    with pytest.raises(EditingError, match="no unit of this block is active there"):
        list(rank_one_updates(weight, bias, **options, moment=torch.eye(2).double(), ridge=0.0))


def test_keys_and_their_second_moment_are_those_of_prompts_one_at_a_time():
    model = tiny_gpt2(0)
    inputs = torch.cat([slow_inputs(model, BLOCK, text) for text in TEXTS]).double()
    expected = torch.einsum("ti,tj->ij", inputs, inputs) / len(inputs)
    torch.testing.assert_close(second_moment(model, TEXTS, block=BLOCK, batch_size=4), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second_moment(model, TEXTS[::-1], block=BLOCK), expected, atol=1e-5, rtol=1e-5)
    for key, place in (("subject_last", lambda q: 2), ("last", lambda q: len(q.prompt) - 1)):
        found = find_keys(model, REQUESTS, block=BLOCK, key=key)
        for row, one in zip(found, REQUESTS, strict=True):
            slow = torch.stack([slow_inputs(model, BLOCK, q.prompt)[place(q)] for q in one.questions]).mean(0)
            torch.testing.assert_close(row, slow, atol=1e-5, rtol=1e-5)
    with pytest.raises(EditingError, match="needs texts, and there is none"):
        second_moment(model, [], block=BLOCK)


def test_values_make_the_new_answer_likely_and_each_is_found_as_if_alone():
    model = tiny_gpt2(0)
    chosen = RankOne(key="last", steps=15)
    values = find_values(model, REQUESTS, block=BLOCK, settings=chosen)
    for order in ([2, 0, 1], [1]):
        alone = find_values(model, [REQUESTS[i] for i in order], block=BLOCK, settings=chosen)
        torch.testing.assert_close(alone, values[order], atol=1e-3, rtol=1e-3)
    projection = model.transformer.h[BLOCK].mlp.c_proj
    start = find_keys(model, REQUESTS, block=BLOCK, key="last") @ projection.weight + projection.bias
    assert ((values - start).norm(dim=1) <= chosen.clamp * start.norm(dim=1) * (1 + 1e-5)).all()
    short = find_values(model, REQUESTS, block=BLOCK, settings=dataclasses.replace(chosen, clamp=0.1))
    torch.testing.assert_close((short - start).norm(dim=1), 0.1 * start.norm(dim=1), atol=1e-4, rtol=1e-4)

    def with_value(value, question):
        """The answer's log-probability where the projection's output at the last token is moved by hand."""
        shift, total, text = value - start[0], 0.0, list(question.prompt)

        def add(module, inputs, output):
            moved = output.clone()
            moved[0, len(question.prompt) - 1] += shift
            return moved

        for token in question.answer:
            hook = projection.register_forward_hook(add)
            with torch.no_grad():
                total += float(model(torch.tensor([text])).logits[0, -1].log_softmax(-1)[token])
            hook.remove()
            text.append(token)
        return total

    gains = [with_value(values[0], q) - with_value(start[0], q) for q in REQUESTS[0].questions]
    assert np.mean(gains) > 1


def test_outcomes_are_those_of_a_model_edited_by_hand_which_stays_as_it_was():
    model = tiny_gpt2(0).train()
    model.transformer.h[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    moment = second_moment(model, TEXTS, block=BLOCK)
    chosen = RankOne(key="last", steps=15)
    found = rank_one_outcomes(model, REQUESTS, OTHERS, block=BLOCK, moment=moment, settings=chosen)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert found["item_id"].tolist() == ["a", "b", "c"]

    one = REQUESTS[1]
    start = answered(model, one.questions)[0]
    projection = model.transformer.h[BLOCK].mlp.c_proj
    key = find_keys(model, [one], block=BLOCK, key="last")
    value = find_values(model, [one], block=BLOCK, settings=chosen)
    (update,) = rank_one_updates(projection.weight, projection.bias, key, value, moment, ridge=chosen.ridge)
    edited = tiny_gpt2(0)
    edited.load_state_dict(before)
    with torch.no_grad():
        edited.transformer.h[BLOCK].mlp.c_proj.weight += update
    end = answered(edited, one.questions)[0]
    assert found.loc[1, "rewrite"] == pytest.approx(float(((end - start) / (1 - start)).mean()), rel=1e-3)
    assert found.loc[1, "rewrite"] > 1e-3


def compiled_requests(case):
    """Every fact is to get its foil; the other facts are what may be damaged."""
    requests = [
        Request(
            pair.pair_id, "definitional", (Question(pair.clean, pair.foil, 1),), (Question(pair.clean, pair.foil, 1),)
        )
        for pair in case.pairs
    ]
    return requests[:2], [Question(pair.clean, pair.answer, 1) for pair in case.pairs[2:]]


def test_a_compiled_model_can_be_edited_where_it_looks_up_and_nowhere_else():
    case = compiled()
    requests, others = compiled_requests(case)
    model = case.models.taught
    for block in range(LAYERS):
        moment = second_moment(model, case.references, block=block)
        for key in ("subject_last", "last"):
            edit = {"block": block, "moment": moment, "settings": RankOne(key=key)}
            if (block, key) == (LOOKUP, "subject_last"):
                found = rank_one_outcomes(model, requests, others, **edit)
                assert (found["success"] == 1).all() and (found["damage"] == 0).all()
                assert found[["rewrite", "paraphrase"]].min(axis=None) > 0.99
            else:
                with pytest.raises(EditingError, match=f"MLP of block {block} writes nothing at {key}"):
                    rank_one_outcomes(model, requests, others, **edit)
    assert len(others) == FACTS - 2 and answered(model, others)[1].all()


def test_an_error_leaves_the_model_as_it_was_and_models_without_the_projection_are_refused():
    model = tiny_gpt2(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moment = second_moment(model, TEXTS, block=BLOCK)
    with pytest.raises(EditingError, match="became NaN: lower learning_rate"):
        chosen = RankOne(learning_rate=float("inf"))
        rank_one_outcomes(model, REQUESTS, OTHERS, block=BLOCK, moment=moment, settings=chosen)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.transformer.h[BLOCK].mlp.c_proj._forward_hooks
    with pytest.raises(EditingError, match="There is no block 3: the model has 0 to 2"):
        second_moment(model, TEXTS, block=3)
    with pytest.raises(EditingError, match="ends in c_proj, not that of LlamaForCausalLM"):
        second_moment(tiny_model("llama", 0), TEXTS, block=0)
    with pytest.raises(EditingError, match="The key token is subject_last or last, not 'middle'"):
        RankOne(key="middle")
