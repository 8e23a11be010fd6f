"""The training loop: against a loop written out by hand, interrupted against straight, and its bad endings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lugpi_core.corpora import load_corpus
from lugpi_core.corpus_options import CorpusOptions
from lugpi_core.device import resolve_compute, seed_everything
from lugpi_core.errors import InputError
from train.checkpoint import CHECKPOINT
from train.data import Batch, TrainingData
from train.loop import Loss, Training, accuracy, best_epoch, fit, labels_of, predict
from train.models import Output, TextClassifier
from train.options import BaselineOptions
from train.text import find_text_model, load_text_classifier, token_ids


def cross_entropy(output: Output, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(output.logits, batch["labels"])


def training_of(small_csv: Path, folder: Path, loss: Loss = cross_entropy, **flags: Any) -> Training:
    options = BaselineOptions(
        **{"dataset": str(small_csv), "split_column": "split", "epochs": 3, "learning_rate": 1e-3, "text_model": "demo", **flags}
    )
    corpus = load_corpus(CorpusOptions(dataset=str(small_csv), split_column="split"))
    text_model = find_text_model("demo", max_length=None)
    seed_everything(options.seed)
    model = TextClassifier(load_text_classifier(text_model, corpus))
    data = TrainingData(corpus=corpus, device=torch.device("cpu"), ids=token_ids(text_model, corpus), pad_id=0)
    compute = resolve_compute("cpu", "float32", half="bfloat16")
    folder.mkdir(exist_ok=True)
    return Training(model=model, data=data, loss=loss, options=options, compute=compute, folder=folder)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    unlike = [name for name in one if not torch.equal(one[name], other[name])]
    assert not unlike


def test_the_loop_is_the_loop_one_would_write_by_hand(small_csv: Path, tmp_path: Path) -> None:
    training = training_of(small_csv, tmp_path / "ours", epochs=2)
    fit(training)
    by_hand = training_of(small_csv, tmp_path / "hand", epochs=2)
    rows, model = by_hand.data.corpus.rows("train"), by_hand.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    steps, step, kept = 2 * 3, 0, None
    scores = []
    for epoch in range(2):
        model.train()
        for batch in by_hand.data.epoch(rows, 14, torch.Generator().manual_seed(epoch)):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 - step / steps)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(batch).logits, batch["labels"]))
            optimizer.step()
            step += 1
        validation = by_hand.data.corpus.rows("validation")
        scores.append(accuracy(predict(by_hand, validation).logits, labels_of(by_hand.data, validation)))
        if scores[-1] > max(scores[:-1], default=-1):
            kept = weights_of(model)
    assert step == steps
    assert kept is not None
    assert_same_weights(weights_of(training.model), kept)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("broken_step", [0, 4, 8])
def test_an_interrupted_training_ends_bit_for_bit_like_a_straight_one(
    small_csv: Path, tmp_path: Path, optimizer: str, broken_step: int
) -> None:
    straight = training_of(small_csv, tmp_path / "straight", optimizer=optimizer)
    history = fit(straight)
    steps = 0

    def breaks(output: Output, batch: Batch) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == broken_step + 1:
            raise KeyboardInterrupt
        return cross_entropy(output, batch)

    with pytest.raises(KeyboardInterrupt):
        fit(training_of(small_csv, tmp_path / "broken", breaks, optimizer=optimizer))
    torch.rand(7)
    resumed = training_of(small_csv, tmp_path / "broken", optimizer=optimizer)
    resumed_history = fit(resumed)
    assert_same_weights(weights_of(resumed.model), weights_of(straight.model))
    without_times = [[{k: v for k, v in record.items() if k != "seconds"} for record in one] for one in (history, resumed_history)]
    assert without_times[0] == without_times[1]


def test_the_kept_weights_are_those_of_the_best_epoch(small_csv: Path, tmp_path: Path) -> None:
    training = training_of(small_csv, tmp_path / "run", epochs=4)
    history = fit(training)
    validation = training.data.corpus.rows("validation")
    found = accuracy(predict(training, validation).logits, labels_of(training.data, validation))
    assert found == pytest.approx(history[best_epoch(history)]["validation_accuracy"], abs=1e-6)
    assert max(record["validation_accuracy"] for record in history) == pytest.approx(found, abs=1e-6)


def test_the_best_epoch_is_the_first_of_the_highest() -> None:
    assert best_epoch([{"validation_accuracy": value} for value in (0.5, 0.8, 0.7, 0.8)]) == 1


def test_training_learns_the_topics(small_csv: Path, tmp_path: Path) -> None:
    training = training_of(small_csv, tmp_path / "run", epochs=12, learning_rate=2e-3)
    history = fit(training)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    test = training.data.corpus.rows("test")
    assert accuracy(predict(training, test).logits, labels_of(training.data, test)) > 0.8


def test_a_loss_that_is_not_finite_is_told_and_the_last_checkpoint_stays(small_csv: Path, tmp_path: Path) -> None:
    steps = 0

    def explodes(output: Output, batch: Batch) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return cross_entropy(output, batch) * (float("nan") if steps > 3 else 1.0)

    with pytest.raises(InputError, match=r"training loss of nan in epoch 1.*lower --learning-rate"):
        fit(training_of(small_csv, tmp_path / "run", explodes))
    state = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    assert len(state["history"]) == 1
    assert all(value.isfinite().all() for value in state["model"].values() if value.is_floating_point())


def test_predictions_come_in_the_order_of_the_rows(small_csv: Path, tmp_path: Path) -> None:
    training = training_of(small_csv, tmp_path / "run")
    rows = [59, 0, 17, 3, 42]
    together = predict(training, rows)
    for n, row in enumerate(rows):
        alone = predict(training, [row])
        torch.testing.assert_close(together.logits[n], alone.logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.embeddings[n], alone.embeddings[0], atol=1e-5, rtol=1e-5)


def test_another_seed_is_another_model(small_csv: Path, tmp_path: Path) -> None:
    one, other = (training_of(small_csv, tmp_path / f"run{seed}", epochs=1, seed=seed) for seed in (0, 1))
    fit(one)
    fit(other)
    assert any(not torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
