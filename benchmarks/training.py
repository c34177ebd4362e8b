"""`python -m benchmarks.training`: fine-tuning GPT-2 small, the study's configurations beside the corrected ones.

Texts are as long as real abstracts (deciles of 1,000 from PubMed, title and abstract, in GPT-2's tokens); `--corpus`
takes real ones. I, II, I′, II′ and a plain PyTorch loop over II's rows take turns, a few steps each. Useful tokens are
tokens of texts; neither padding nor ends of texts count. Then the embedded model, which learns something in a minute:
whether packing changes the loss on test texts, and how steps scale with processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from benchmarks.machine import matrix_peak, measured, synchronise
from benchmarks.sweep import RESULTS, options, write_csv
from helpers.config import ROOT, Configuration, FineTuning, Paths, load_profile
from helpers.corpus import collect, read_corpus
from helpers.examples import Split, collate
from helpers.finetune import ROWS, fine_tune
from helpers.losses import held_out_loss
from helpers.models import load_base, load_tokenizer
from helpers.trainer import ProbedTrainer, training_arguments
from helpers.training import RUN_TITLES, run_texts

LENGTHS = (114, 253, 291, 320, 342, 366, 386, 410, 433, 484, 878)  # tokens: least, deciles, most
TEXTS = 200
ROUNDS = 3
WARM, STEPS = 1, 1  # steps that are not timed, and that are
COMPILED_WARM, COMPILED_STEPS = 8, 20  # shapes vary, and the first few are compiled
CPU_ROWS = 2  # per step; on CUDA as published
LOOP, AS_PUBLISHED, COMPILED = "plain loop, II", "I, fp16", "I′, bf16, compiled"
FASTER, SLOWER, UTILISED = 1.15, 1.15, 0.45  # wanted: beyond the padding bound; at most, of the loop; at least
SEEDS, EPOCHS = (0, 1, 2), 3
SHARES = ((1, 1), (1, 2), (2, 1))  # processes, threads each
SHARED_STEPS, SHARED_ROWS = 10, 16


class Made:
    """A tokenizer of made texts: a text is its length, and its tokens are random."""

    eos_token_id = 50256

    def __call__(self, texts: Sequence[str]) -> dict[str, list[list[int]]]:
        """Token ids, the same for the same text."""
        drawn = (np.random.default_rng(int(text)).integers(0, self.eos_token_id, int(text)) for text in texts)
        return {"input_ids": [ids.tolist() for ids in drawn]}


def made_texts() -> list[str]:
    """Texts whose lengths are spread as `LENGTHS` says, in random order."""
    spread = np.interp((np.arange(TEXTS) + 0.5) / TEXTS, np.linspace(0, 1, len(LENGTHS)), LENGTHS)
    return [str(round(length)) for length in np.random.default_rng(0).permutation(spread)]


class Clock(TrainerCallback):
    """Seconds of every step, and the tokens, padding too, of every batch as it is put together."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: list[float] = []
        self.tokens: list[int] = []

    def batch(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """`collate`, counting."""
        batch = collate(rows)
        self.tokens.append(batch["input_ids"].numel())
        return batch

    def on_step_begin(self, *arguments, **options):
        """Begin a step."""
        synchronise(self.device)
        self._began = time.perf_counter()

    def on_step_end(self, *arguments, **options):
        """End a step."""
        synchronise(self.device)
        self.seconds.append(time.perf_counter() - self._began)


def useful_share(rows: Sequence[dict[str, list[int]]], end: int) -> float:
    """How much of all rows is text; padding is made of ends of texts."""
    tokens = [token for row in rows for token in row["input_ids"]]
    return sum(token != end for token in tokens) / len(tokens)


def run_trainer(model, rows, configuration: Configuration, settings: FineTuning, clock: Clock) -> None:
    """Some steps of what `fine_tune` does, without its evaluations and checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(Path(folder), configuration, settings, metric="eval_loss", seed=0)
        arguments.eval_strategy = arguments.save_strategy = "no"
        arguments.load_best_model_at_end = False
        trainer = ProbedTrainer(
            model, configuration=configuration, args=arguments, train_dataset=rows, data_collator=clock.batch,
            callbacks=[clock], probe=None, tokenizer=None, probe_batch_size=0, report=None,
        )  # fmt: skip
        trainer.train()


def run_loop(model, rows, configuration: Configuration, settings: FineTuning, clock: Clock) -> None:
    """The same steps in plain PyTorch: II's rows, AdamW, clipped gradients, linear decay."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), configuration.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.max_steps)
    loader = torch.utils.data.DataLoader(rows, configuration.batch_size, shuffle=True, collate_fn=clock.batch)
    batches = iter(loader)
    for _ in range(settings.max_steps):
        clock.on_step_begin()
        for _ in range(configuration.gradient_accumulation):
            batch = {name: value.to(clock.device) for name, value in next(batches).items()}
            (model(**batch).loss / configuration.gradient_accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.on_step_end()


def peers(settings: FineTuning, device: str) -> Iterator[tuple[str, Configuration, FineTuning, Callable]]:
    """What takes turns: name, configuration, settings and runner. All in float32; on CUDA also as they are trained."""
    scaled = {} if device == "cuda" else {"batch_size": CPU_ROWS, "gradient_accumulation": 1}
    steps, single = WARM + STEPS, {"precision": "fp32", **scaled}
    plain = replace(settings, max_steps=steps, compiled=False)
    for name, title in RUN_TITLES.items():
        yield title, replace(getattr(settings, name), **single), plain, run_trainer
    yield LOOP, replace(settings.configuration_2, **single), plain, run_loop
    if device == "cuda":
        yield AS_PUBLISHED, settings.configuration_1, plain, run_trainer
        longer = replace(settings, max_steps=COMPILED_WARM + COMPILED_STEPS)
        yield COMPILED, settings.corrected_1, longer, run_trainer


def steps(texts: Sequence[str], tokenizer, settings: FineTuning, device: str) -> Iterator[dict]:
    """Rows of training.csv: configuration, round, seconds and tokens (of a step), useful_share, peak_mb.

    The share is that of the whole corpus: the rows of a few steps are a poor sample of II's, some of which are tails.
    """
    for number in range(1, ROUNDS + 1):
        for title, configuration, planned, run in peers(settings, device):
            rows = ROWS[configuration.rows](texts, tokenizer, max_length=configuration.max_length)
            torch.manual_seed(0)
            model = GPT2LMHeadModel(GPT2Config()).to(device)
            clock = Clock(device)
            _, took = measured(partial(run, model, rows, configuration, planned, clock), device)
            warm = COMPILED_WARM if title == COMPILED else WARM
            batches, timed = configuration.gradient_accumulation, planned.max_steps - warm
            yield {
                "configuration": title,
                "round": number,
                "seconds": sum(clock.seconds[warm:]) / timed,
                "tokens": sum(clock.tokens[warm * batches : planned.max_steps * batches]) / timed,
                "useful_share": useful_share(rows, tokenizer.eos_token_id),
                "peak_mb": took.peak - took.before,
            }


def operations_per_token(configuration: GPT2Config, length: int) -> int:
    """Of a training step: six for every weight that is multiplied, and attention over `length` positions."""
    width, layers = configuration.n_embd, configuration.n_layer
    weights = 12 * layers * width**2 + configuration.vocab_size * width
    return 6 * weights + 12 * layers * width * length


def losses() -> Iterator[dict]:
    """Rows of training_losses.csv: configuration, seed, loss (nats per word of the test texts)."""
    profile = load_profile("mini")
    with tempfile.TemporaryDirectory() as scratch:
        texts = embedded_texts(Path(scratch))
        for seed in SEEDS:
            for name in ("configuration_2", "corrected_2"):
                configuration = replace(getattr(profile.finetune, name), epochs=EPOCHS, stop_on="loss")
                model, tokenizer = load_base(profile.model, Paths("mini"))
                probe = pd.DataFrame({"prompt": ["A"], "answer": ["a"], "group": ["seen"], "kind": ["made"]})
                given = {"settings": profile.finetune, "configuration": configuration, "seed": seed, "probe": probe}
                folder = Path(scratch) / f"{name}-{seed}"
                fine_tune(model, tokenizer, texts, **given, checkpoints=folder, key="", log=lambda line: None)
                found = held_out_loss(model, tokenizer, texts.test, max_length=112, batch_size=32)
                yield {"configuration": RUN_TITLES[name], "seed": seed, "loss": found["loss"]}


def embedded_texts(scratch: Path) -> Split:
    """The split of the embedded corpus that notebook 02 trains on."""
    profile = load_profile("mini")
    collect(profile.corpus, Paths("mini"), scratch / "corpus")
    return run_texts(read_corpus(scratch / "corpus"), profile.finetune, seed=0)


def scaling() -> Iterator[dict]:
    """Rows of training_scaling.csv: processes, threads (each), seconds and tokens (of a step of all processes)."""
    for processes, threads in SHARES:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [*launch, "-m", "benchmarks.training", "--share"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{processes} processes could not train: {done.stderr[-2000:]}")
        shares = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
        yield {
            "processes": processes,
            "threads": threads,
            "seconds": max(share["seconds"] for share in shares),
            "tokens": sum(share["tokens"] for share in shares),
        }


def share() -> None:
    """What each process of `scaling` does: its part of some steps of II′ on the embedded corpus."""
    profile = load_profile("mini", f"finetune.max_steps={SHARED_STEPS}")
    model, tokenizer = load_base(profile.model, Paths("mini"))
    configuration, clock = replace(profile.finetune.corrected_2, batch_size=SHARED_ROWS), Clock("cpu")
    with tempfile.TemporaryDirectory() as scratch:
        texts = embedded_texts(Path(scratch)).training
    rows = ROWS[configuration.rows](texts, tokenizer, max_length=configuration.max_length)
    run_trainer(model, rows, configuration, profile.finetune, clock)
    tokens = np.median(clock.tokens[1 : 1 + SHARED_STEPS])
    print(json.dumps({"seconds": np.median(clock.seconds[1:]), "tokens": tokens}), flush=True)


def report(rows: pd.DataFrame, bound: float, device: str) -> str:
    """Seconds, tokens and memory of every configuration; the ratios, and what they should be."""
    rows = rows.assign(useful_per_second=rows["tokens"] / rows["seconds"] * rows["useful_share"])
    table = rows.drop(columns="round").groupby("configuration", sort=False).median()
    speed, lines = table["useful_per_second"], [table.round(2).to_string()]
    for corrected, published in (("I′", "I"), ("II′", "II")):
        ratio = speed[corrected] / speed[published]
        lines.append(
            f"{corrected} beside {published}: {ratio:.2f} × the useful tokens a second (padding alone would allow "
            f"{bound:.2f}; wanted: {FASTER} × that, {FASTER * bound:.2f}): {said(ratio >= FASTER * bound)}."
        )
    slower = table.seconds["II"] / table.seconds[LOOP]
    lines.append(
        f"II beside a plain loop: {slower:.2f} × its time (wanted: {SLOWER} at most): {said(slower <= SLOWER)}."
    )
    if COMPILED in speed:
        peak = matrix_peak(device, dtype=torch.bfloat16)
        used = speed[COMPILED] * operations_per_token(GPT2Config(), round(512 / bound)) / peak
        lines.append(
            f"I′ uses {used:.0%} of {peak / 1e12:.0f} TFLOP/s (wanted: {UTILISED:.0%}): {said(used >= UTILISED)}."
        )
    return "\n".join(lines)


def loss_report(found: pd.DataFrame) -> str:
    """Whether packing changes what is learnt."""
    groups = found.groupby("configuration", sort=False)["loss"]
    mean, error = groups.mean(), float(np.sqrt((groups.var() / groups.size()).sum()))
    difference = mean["II′"] - mean["II"]
    return (
        f"Loss on test words after {EPOCHS} epochs, {len(SEEDS)} seeds: II {mean['II']:.4f}, II′ {mean['II′']:.4f}, "
        f"difference {difference:+.4f} ± {error:.4f} (standard error): within seed noise (two errors): "
        f"{said(abs(difference) <= 2 * error)}."
    )


def scaling_report(found: pd.DataFrame) -> str:
    """Tokens a second by processes and threads, and beside one of each."""
    speed = found["tokens"] / found["seconds"]
    table = found.assign(tokens_per_second=speed.round(), speedup=(speed / speed.iloc[0]).round(2))
    return table.round(3).to_string(index=False)


def said(met: bool) -> str:
    """Yes or NO."""
    return "yes" if met else "NO"


def main() -> int:
    """Time the steps of fine-tuning, compare losses, and share steps between processes."""
    parser = options(main.__doc__)
    parser.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--corpus", type=Path, help="a file with a text per line, instead of made texts")
    parser.add_argument("--tokenizer", type=Path, help="the folder of GPT-2's tokenizer, for --corpus")
    parser.add_argument("--share", action="store_true", help="be one of the processes that the scaling starts")
    arguments = parser.parse_args()
    if arguments.share:
        share()
        return 0
    torch.set_num_threads(arguments.threads)
    settings = load_profile("paper").finetune
    texts, tokenizer = made_texts(), Made()
    if arguments.corpus:
        texts, tokenizer = arguments.corpus.read_text("utf-8").splitlines(), load_tokenizer(arguments.tokenizer)
    lengths = [min(len(ids), 512) for ids in tokenizer(texts)["input_ids"]]
    rows = pd.DataFrame(steps(texts, tokenizer, settings, arguments.device))
    print(report(rows, 512 / float(np.mean(lengths)), arguments.device), flush=True)
    if arguments.corpus:
        return 0
    write_csv(rows, RESULTS / "training.csv")
    found = pd.DataFrame(losses())
    write_csv(found, RESULTS / "training_losses.csv")
    print(loss_report(found), flush=True)
    shared = pd.DataFrame(scaling())
    write_csv(shared, RESULTS / "training_scaling.csv")
    print(scaling_report(shared))
    return 0


if __name__ == "__main__":
    sys.exit(main())
