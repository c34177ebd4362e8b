"""The readout in chunks of the vocabulary against the same metrics on whole logits."""

import numpy as np
import pytest
import torch
from conftest import VOCABULARY
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

from helpers import metrics, readout
from helpers.metrics import METRICS, MetricError
from helpers.tracing import traceable

ROWS, PAIRS = 7, 3


def unembedding_with_bias(family: str):
    """A model whose unembedding is its own and has a bias, as no family here has by default."""
    model = tiny_model(family, 0)
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(model.config.hidden_size, VOCABULARY)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    model.set_output_embeddings(head)
    return model


MODELS = {
    "tied": tiny_model("gpt2", 0),
    "untied": tiny_model("llama", 0),
    "bias": unembedding_with_bias("neox-parallel"),
    "tied bfloat16": tiny_model("gpt2", 0).bfloat16(),
    "untied double": tiny_model("qwen2", 0).double(),
}


def whole_logits(model, final):
    """The model's own final normalisation and unembedding, with nothing left out."""
    norm = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
    return model.get_output_embeddings()(model.get_submodule(norm.get(model.config.model_type, "model.norm"))(final))


def residuals(model, seed: int, rows: int, scale: float = 3.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, 16, generator=generator)).to(model.dtype)


def tokens_of(sets):
    """Sets of tokens, `(pairs, tokens)`, each filled up to the longest."""
    longest = max(len(tokens) for tokens in sets)
    return torch.tensor([[*tokens, *[metrics.NO_TOKEN] * (longest - len(tokens))] for tokens in sets])


def both(model, final, clean, answer, foil, pair, asked=METRICS):
    """Scores of the readout, and those of whole logits."""
    with torch.no_grad(), traceable(model) as traced:
        reference = readout.reference(traced, answer, foil, clean, asked)
        scores = readout.score(traced, final, pair, reference, asked)
        expected = metrics.score(
            whole_logits(model, final).float(),
            answer=answer[pair],
            foil=foil[pair],
            clean_logits=whole_logits(model, clean).float()[pair],
            metrics=asked,
        )
    assert all(value.dtype == np.float64 and value.shape == (len(final),) for value in scores.values())
    return scores, {name: value.double().numpy() for name, value in expected.items()}


@pytest.mark.parametrize("chunk", [1, 7, 59, 60, 61, 4096])
@pytest.mark.parametrize("name", MODELS)
def test_any_chunk_of_the_vocabulary_gives_the_metrics_of_whole_logits(name, chunk, monkeypatch):
    monkeypatch.setattr(readout, "CHUNK", chunk)
    model = MODELS[name]
    answer, foil = tokens_of([[0], [59, 7, 13], [30, 0]]), tokens_of([[59, 58], [4], [29]])
    pair = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    scores, expected = both(model, residuals(model, 0, ROWS), residuals(model, 1, PAIRS), answer, foil, pair)
    # Half precision rounds whole logits to 8 bits; the readout gathers the answer's in single precision.
    tolerance = 5e-2 if "bfloat16" in name else 2e-5
    assert tuple(scores) == METRICS
    for metric in METRICS:
        if metric == "rank" and "bfloat16" in name:
            assert np.abs(scores[metric] - expected[metric]).max() <= 1
        else:
            np.testing.assert_allclose(scores[metric], expected[metric], rtol=0, atol=tolerance, err_msg=metric)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(["tied", "untied", "bias"]),
    chunk=st.integers(1, 70),
    seed=st.integers(0, 2**16),
    tokens=st.lists(st.permutations(range(60)), min_size=1, max_size=4),
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=4, max_size=4),
    rows=st.integers(1, 6),
    asked=st.lists(st.sampled_from(METRICS), min_size=1, unique=True),
)
def test_any_metrics_of_any_rows_are_those_of_whole_logits(name, chunk, seed, tokens, sizes, rows, asked):
    model = MODELS[name]
    answer = tokens_of([order[:right] for order, (right, _) in zip(tokens, sizes, strict=False)])
    foil = tokens_of([order[-wrong:] for order, (_, wrong) in zip(tokens, sizes, strict=False)])
    pair = torch.randint(len(tokens), (rows,), generator=torch.Generator().manual_seed(seed))
    final, clean = residuals(model, seed, rows), residuals(model, seed + 1, len(tokens))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readout, "CHUNK", chunk)
        scores, expected = both(model, final, clean, answer, foil, pair, asked)
    assert list(scores) == asked
    for metric in asked:
        np.testing.assert_allclose(scores[metric], expected[metric], rtol=0, atol=3e-5, err_msg=metric)


def test_the_divergence_of_a_clean_run_from_itself_is_nothing_and_is_never_negative():
    model = MODELS["untied"]
    clean, token = residuals(model, 1, 40, scale=50.0), torch.zeros(40, 1, dtype=torch.long)
    scores, _ = both(model, clean, clean, token, token + 1, torch.arange(40), ("kl_divergence",))
    assert (scores["kl_divergence"] >= 0).all() and scores["kl_divergence"].max() < 1e-4


@pytest.mark.parametrize("count", [1, 3])
def test_no_right_answer_ever_stands_above_the_best_of_them(count, monkeypatch):
    """Its logit is computed twice, and the two roundings may differ: alone in its chunk it must still not count."""
    model = MODELS["tied bfloat16"]
    final = residuals(model, 2, 500)
    with torch.no_grad(), traceable(model) as traced:
        best = whole_logits(model, final).topk(count).indices
        for chunk in (1, 13, 4096):
            monkeypatch.setattr(readout, "CHUNK", chunk)
            reference = readout.reference(traced, best, best, None, ("rank",))
            rank = readout.score(traced, final, torch.arange(500), reference, ("rank",))["rank"]
            assert (rank == 0).mean() > 0.9 and rank.max() <= 2  # ties in half precision


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_not_a_number_is_none_in_every_metric(metric):
    model = MODELS["untied"]
    final = residuals(model, 3, 3)
    final[1, 5] = torch.nan
    clean, token = residuals(model, 4, 1), torch.tensor([[3]])
    with torch.no_grad(), traceable(model) as traced:
        reference = readout.reference(traced, token, token + 1, clean, (metric,))
        value = readout.score(traced, final, torch.tensor([0, 0, 0]), reference, (metric,))[metric]
    assert np.isnan(value).tolist() == [False, True, False]


def test_the_reference_needs_a_clean_run_for_the_divergence_only():
    token = torch.tensor([[3]])
    with traceable(MODELS["tied"]) as traced:
        reference = readout.reference(traced, token, token + 1, None, ("logit_difference", "rank"))
        assert (reference.clean, reference.expected, reference.log_total) == (None, None, None)
        with pytest.raises(MetricError, match="among logit_difference"):
            readout.score(traced, residuals(MODELS["tied"], 0, 1), torch.tensor([0]), reference, ("accuracy",))
