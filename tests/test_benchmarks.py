"""The benchmarks: that every implementation patches the same sites, and that what is printed was computed rightly."""

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import machine, memory, ours, parsing, scaling, screening, sweep, training, worker
from benchmarks.cases import SMALL_BLOCKS, Case, Network
from benchmarks.comparisons import COMPARISONS, Comparison, Ratio, medians, ratio_table
from benchmarks.peers import hooks, limit, traces
from benchmarks.worker import IMPLEMENTATIONS, Timing, Worker, WorkerError
from helpers.config import load_profile
from helpers.pubmed_records import parse_records

TINY = Network(layers=3, width=32, heads=2, vocabulary=50)
CASES = (
    Case("blocks", TINY, pairs=3, positions=4),
    Case("heads", TINY, sites="heads", pairs=3, positions=4),
    Case("shared prefix", TINY, pairs=3, positions=5, replaced=3),
    Case("one token", TINY, pairs=2, positions=1),
)


@pytest.fixture(scope="module")
def model():
    return TINY.load("cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_implementation_gives_the_same_effects(model, case):
    prompts = case.prompts("cpu")
    expected = getattr(ours, case.sites)(model, prompts)
    assert expected.std() > 0.01
    for peer, converted in ((limit, limit.weights(model)), (hooks, model), (traces, traces.traced(model))):
        torch.testing.assert_close(getattr(peer, case.sites)(converted, prompts).double(), expected, atol=1e-5, rtol=0)


def test_all_metrics_leave_the_logit_difference_as_it_is(model):
    prompts = CASES[0].prompts("cpu")
    torch.testing.assert_close(ours.blocks_all_metrics(model, prompts), ours.blocks(model, prompts), atol=1e-6, rtol=0)


def test_prompts_are_the_same_everywhere_and_differ_where_they_should():
    case = dataclasses.replace(SMALL_BLOCKS, replaced=10)
    prompts, again = case.prompts("cpu"), Case.from_json(case.as_json()).prompts("cpu")
    for name in ("clean", "corrupted", "answers"):
        assert torch.equal(getattr(prompts, name), getattr(again, name))
    assert (prompts.clean != prompts.corrupted).any(0).nonzero().tolist() == [[10]]
    assert (SMALL_BLOCKS.prompts("cpu").clean != SMALL_BLOCKS.prompts("cpu").corrupted).all()
    assert (prompts.answers[:, 0] != prompts.answers[:, 1]).all()


def test_a_worker_answers_and_a_failure_is_told(model):
    case = CASES[0]
    with Worker("ours", python=sys.executable, device="cpu", threads=1) as process:
        process.prepare(case)
        timing = process.sweep(case)
        assert timing.seconds > 0 and timing.peak >= timing.before > 0
        np.testing.assert_allclose(timing.effects, ours.blocks(model, case.prompts("cpu")), atol=1e-6)
        with torch.no_grad():
            prompts = case.prompts("cpu")
            largest = max(model(tokens).logits.abs().max().item() for tokens in (prompts.clean, prompts.corrupted))
        assert process.largest_logit(case) == pytest.approx(largest, rel=1e-5)
        assert process.floating_point_operations(case) > 0
        process.release()
        with pytest.raises(WorkerError, match=r"ours failed: KeyError.*build/benchmarks/ours.log"):
            process.largest_logit(case)
    with pytest.raises((WorkerError, ValueError)):
        process.sweep(case)


class Fake:
    """A worker whose effects are given, and whose memory grows by 5 MB."""

    def __init__(self, effects):
        self.effects, self.calls = effects, []

    def prepare(self, case):
        self.calls.append("prepare")

    def release(self):
        self.calls.append("release")

    def largest_logit(self, case):
        return 2.0

    def sweep(self, case):
        self.calls.append("sweep")
        return Timing(1.5, before=10, peak=15, after=11, effects=self.effects)


def test_rounds_alternate_and_count_only_with_the_right_answer():
    comparison = Comparison(CASES[0], {"ours": 2, "limit": 1})
    right, close = Fake([1.0, 2.0]), Fake([1.0, 2.0 + 1e-5])
    rows = list(sweep.compare([comparison], {"ours": right, "limit": close}, rounds=3))
    assert [(row["implementation"], row["round"], row["peak_mb"]) for row in rows] == [
        ("ours", 1, 5),
        ("limit", 1, 5),
        ("ours", 2, 5),
    ]
    assert rows[1]["difference"] == pytest.approx(1e-5)
    assert right.calls == ["release", "prepare", "sweep", "sweep"]
    for wrong in ([1.0, 2.1], [1.0, float("nan")], [1.0]):
        with pytest.raises(sweep.DisagreementError, match="limit"):
            list(sweep.compare([comparison], {"ours": right, "limit": Fake(wrong)}, rounds=3))


ROUNDS = pd.DataFrame(
    [("a", "ours", 1.0, 5.0), ("a", "ours", 9.0, 7.0), ("a", "ours", 2.0, 6.0), ("a", "limit", 1.6, 1.0)],
    columns=["case", "implementation", "seconds", "peak_mb"],
)


def test_medians_and_ratios_by_hand():
    times = medians(ROUNDS)
    assert times.to_dict("list") == {
        "case": ["a", "a"],
        "implementation": ["ours", "limit"],
        "seconds": [2.0, 1.6],
        "peak_mb": [7.0, 1.0],
    }
    ratios = [
        Ratio(("a", "ours"), ("a", "limit"), at_most=1.2),
        Ratio(("a", "limit"), ("a", "ours"), at_least=0.8),
        Ratio(("a", "ours"), ("b", "ours")),
    ]
    assert ratio_table(times, ratios).to_dict("list") == {
        "ratio": ["a: ours / limit", "a: limit / ours"],
        "value": [1.25, 0.8],
        "target": ["<= 1.2", ">= 0.8"],
        "met": [False, True],
    }
    assert ratios[2].name == "a: ours / ours (b)"


def test_a_comparison_puts_peers_over_ours_and_ours_over_the_limit():
    comparison = Comparison(CASES[0], {"ours": 1, "limit": 1, "hooks": 1}, {"limit": 1.2, "hooks": 7})
    assert [(ratio.name, ratio.target) for ratio in comparison.ratios()] == [
        ("blocks: ours / limit", "<= 1.2"),
        ("blocks: hooks / ours", ">= 7"),
    ]


def test_every_comparison_can_be_run():
    for comparison in COMPARISONS:
        assert comparison.rounds["ours"] >= max(comparison.rounds.values())
        assert set(comparison.targets) <= set(comparison.rounds) <= set(IMPLEMENTATIONS)


def test_results_are_tables_of_the_promised_columns_and_a_figure(tmp_path):
    rounds = pd.DataFrame(
        [(case, name, 1.5, 20.0, 0.0) for case in ("x blocks", "y heads") for name in IMPLEMENTATIONS],
        columns=["case", "implementation", "seconds", "peak_mb", "difference"],
    )
    sweep.save_results(rounds, tmp_path)
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert list(table) == ["case", "implementation", "seconds", "peak_mb"]
    assert len(table) == 12 and (table["seconds"] == 1.5).all()
    assert all((tmp_path / f"sweep.{suffix}").stat().st_size > 1000 for suffix in ("png", "pdf"))
    assert "Largest growth of memory, ours: 20 MB" in sweep.report(rounds, [])


def test_arithmetic_of_a_product_and_of_attention_by_hand():
    left, right = torch.rand(3, 5), torch.rand(5, 7)
    assert machine.floating_point_operations(lambda: left @ right) == 2 * 3 * 5 * 7
    q = torch.rand(2, 4, 16, 32)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert machine.floating_point_operations(lambda: attend(q, q, q)) == 2 * (2 * 2 * 4 * 16 * 16 * 32)
    assert machine.matrix_peak("cpu", size=64, repeats=1) > 0


def test_memory_of_a_call_is_seen_also_when_it_is_gone_afterwards():
    _, small = machine.measured(lambda: None, "cpu")
    kept, large = machine.measured(lambda: bytes(torch.ones(60_000_000, dtype=torch.uint8).numpy()[:5]), "cpu")
    assert len(kept) == 5
    if machine.STATUS.exists():
        assert large.peak - large.before > 50 > large.after - large.before
        assert small.peak - small.before < 50


def test_drift_by_hand():
    """0.1 MB a repeat, after a jump while warming up."""
    number = np.arange(1, 51)
    held = 100 + 0.1 * number - 50.0 * (number <= memory.WARM)
    table = pd.DataFrame({"case": "x", "repeat": number, "before_mb": held, "peak_mb": 150.0, "after_mb": held})
    assert memory.drift(table, "before_mb") == pytest.approx(5)
    assert memory.drift(table, "peak_mb") == pytest.approx(0)
    assert memory.report(table).endswith("+5.0 MB and the peak by +0.0 MB: flat (wanted: at most 10).")
    assert "NOT flat" in memory.report(table.assign(before_mb=100.0 + number))


def test_repeats_are_rows_of_the_promised_columns():
    rows = list(memory.repeat(Fake([1.0]), CASES[0], 2))
    assert rows[1] == {"case": "blocks", "repeat": 2, "before_mb": 10, "peak_mb": 15, "after_mb": 11}


def test_exponents_by_hand():
    times = pd.DataFrame(
        [("pairs", n, 0.2 * n) for n in (1, 2, 4)] + [("layers", n, 3.0 * n**2) for n in (2, 4, 6)],
        columns=["varied", "value", "seconds"],
    )
    found = scaling.exponents(times)
    assert found == pytest.approx({"pairs": 1, "layers": 2})
    assert ": linear in pairs" in scaling.report(found)
    assert "NOT linear" in scaling.report({"pairs": 1.06})


def test_scaling_varies_one_thing_at_a_time():
    centre = scaling.CENTRE
    for varied, value, case in scaling.cases():
        changed = {
            "pairs": case.pairs != centre.pairs,
            "positions": case.positions != centre.positions,
            "layers": case.network.layers != centre.network.layers,
            "width": case.network.width != centre.network.width,
        }
        assert {name for name, is_changed in changed.items() if is_changed} <= {varied}
        assert value in (getattr(case, varied, None), getattr(case.network, varied, None))
    times = scaling.time_cases(Fake([1.0]), [("pairs", 1, CASES[0]), ("pairs", 2, CASES[1])], rounds=2)
    assert times.to_dict("list") == {"varied": ["pairs"] * 2, "value": [1, 2], "seconds": [1.5, 1.5]}


def test_recall_by_hand():
    """Forty sites: the two largest are 0 and 1; the screen's best two are 0 and 5, and 1 is its fifth."""
    score = np.linspace(1, 0, 40)
    score[[1, 5]] = 0.91, 0.99
    sites = pd.DataFrame({"exact": np.linspace(1, 0, 40), "score": score})
    assert screening.recall(sites, 0.05) == 0.5
    assert screening.recall(sites, 0.2) == 1.0


def test_logs_are_written_where_git_does_not_look():
    assert worker.LOGS.relative_to(worker.ROOT).parts[0] == "build"


# --- the parser -------------------------------------------------------------------------------------------------------


def test_the_parsing_benchmark_reads_what_it_made(monkeypatch, tmp_path):
    monkeypatch.setattr(parsing, "BATCH", 3)
    monkeypatch.setattr(parsing, "BATCHES", (1, 4))
    monkeypatch.setattr(parsing, "ROUNDS", 1)
    records = parse_records(parsing.answer(parsing.made_article, 1))
    assert [record["pmid"] for record in records] == ["4", "5", "6"]
    assert all(len(record["sections"]) == 4 and len(record["mesh"]) == 10 for record in records)
    assert "p < 0.05" in records[0]["abstract"] and len({record["abstract"] for record in records}) == 3
    xml = parsing.answer(parsing.made_article, 0)
    rows = pd.DataFrame([*parsing.parsed(xml), *parsing.collected(parsing.made_article)])
    assert rows["what"].tolist() == ["parse_records", "Bio.Entrez.read", "corpus", "corpus"]
    assert rows["records"].tolist() == [3, 3, 3, 12]
    real = tmp_path / "answer.xml"
    real.write_bytes(xml)
    again = parse_records(parsing.answer(parsing.repeated([real]), 2))
    assert [record["pmid"] for record in again] == ["7", "8", "9"]


def test_the_parsing_report_by_hand():
    rows = pd.DataFrame(
        [
            ("parse_records", 1, 400, 0.2, 5),
            ("Bio.Entrez.read", 1, 400, 0.5, 5),
            ("corpus", 1, 4000, 4.0, 50),
            ("corpus", 1, 16000, 16.0, 90),
        ],
        columns=["what", "round", "records", "seconds", "peak_mb"],
    )
    text = parsing.report(rows, 400 * 9000)
    assert text.startswith("2,000 records a second on one core (9.0 kB each; wanted: 1,500), 2.50 × Bio.Entrez.read;")
    assert "1,000 from batches" in text and "take 17 minutes" in text and "+40 MB: NOT flat" in text


# Training


def test_made_texts_are_as_long_as_real_ones_and_always_the_same():
    texts, tokenizer = training.made_texts(), training.Made()
    ids = tokenizer(texts)["input_ids"]
    lengths = [len(one) for one in ids]
    assert (
        min(lengths) >= 114 and max(lengths) <= 878 and np.mean(np.minimum(lengths, 512)) == pytest.approx(363, abs=5)
    )
    assert tokenizer(texts)["input_ids"] == ids and tokenizer.eos_token_id not in sum(ids, [])


def test_operations_of_a_token_by_hand():
    network = training.GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)
    matrices = 2 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8) + 10 * 8  # queries to values, output, up, down; head
    scores = 2 * 2 * 5 * 8  # per block and token of five: a product with every key, a sum over every value
    assert training.operations_per_token(network, 5) == 3 * 2 * (matrices + scores)


@pytest.mark.parametrize(
    "run, rows", [(training.run_trainer, "packed"), (training.run_trainer, "chunked"), (training.run_loop, "chunked")]
)
def test_steps_are_timed_and_their_useful_tokens_counted(run, rows):
    settings = dataclasses.replace(load_profile("mini").finetune, max_steps=2)
    configuration = dataclasses.replace(
        settings.configuration_2, rows=rows, batch_size=1, gradient_accumulation=2, max_length=8
    )
    clock, texts = training.Clock("cpu"), ["5", "5", "5", "5"]
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2))
    before = model.transformer.h[0].mlp.c_fc.weight.clone()
    made = training.ROWS[rows](texts, training.Made(), max_length=8)
    run(model, made, configuration, settings, clock)
    assert len(clock.seconds) == 2 and clock.tokens[:4] == [{"packed": 6, "chunked": 8}[rows]] * 4
    assert training.useful_share(made, training.Made.eos_token_id) == pytest.approx(5 / clock.tokens[0])
    assert not torch.equal(model.transformer.h[0].mlp.c_fc.weight, before)


def test_a_report_of_training_says_what_is_met():
    seconds = {"I": 10.0, "II": 10.0, "I′": 5.0, "II′": 6.0, training.LOOP: 8.0}
    rows = pd.DataFrame(
        [{"configuration": name, "round": 1, "seconds": each, "tokens": 200, "useful_share": 0.5, "peak_mb": 1.0}
         for name, each in seconds.items()]
    )  # fmt: skip
    text = training.report(rows, 1.5, "cpu")
    assert "I′ beside I: 2.00 × the useful tokens a second" in text and "wanted: 1.15 × that, 1.72): yes" in text
    second = next(line for line in text.splitlines() if line.startswith("II′ beside II: 1.67 ×"))
    assert second.endswith("1.72): NO.") and text.count(": NO.") == 2
    assert "II beside a plain loop: 1.25 × its time (wanted: 1.15 at most): NO" in text
    losses = pd.DataFrame({"configuration": ["II", "II", "II′", "II′"], "loss": [1.0, 1.2, 1.1, 1.3]})
    # Two variances of 0.02 over two runs each: the difference has the standard error √0.02.
    assert "difference +0.1000 ± 0.1414 (standard error): within seed noise (two errors): yes" in training.loss_report(
        losses
    )
    losses["loss"] = [1.0, 1.001, 1.1, 1.101]
    assert training.loss_report(losses).endswith(": NO.")
