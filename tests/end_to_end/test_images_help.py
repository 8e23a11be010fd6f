"""A teacher can use information that only the images have."""

import csv
import json
from pathlib import Path

import pytest

from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from train.cli import main

# Texts of one word each, so that no test word occurs in a training text: from the text alone, the class can hardly be predicted.
WORDS = {
    "food": "banana lemon bread cheese egg pizza apple carrot grapes peach pear cherries strawberry tomato cucumber potato pancakes "
    "croissant pineapple watermelon mango sandwich cookie doughnut",
    "animal": "dog horse fish bird tiger mouse cat wolf fox lion cow pig goat camel elephant rabbit bear panda penguin eagle duck turtle "
    "whale dolphin",
    "vehicle": "car bus train airplane ship bicycle taxi ambulance tractor truck motorcycle tram helicopter rocket sailboat canoe scooter "
    "locomotive minibus ferry speedboat trolleybus automobile monorail",
    "clothing": "dress shoe hat shirt scarf glasses jeans coat socks gloves kimono sari bikini sandal boot crown sunglasses necktie shorts "
    "handbag purse backpack sneaker umbrella",
}
TRAINED, VALIDATED = 6, 3


@pytest.fixture(scope="module")
def words_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        for kind, words in WORDS.items():
            for n, word in enumerate(words.split()):
                split = "train" if n < TRAINED else "validation" if n < TRAINED + VALIDATED else "test"
                writer.writerow([word, kind, split])
    return path


def test_images_of_the_words_help_far_more_than_shuffled_images(words_csv: Path, tmp_path: Path) -> None:
    store = {"dataset": str(words_csv), "split_column": "split", "generator": "demo", "encoders": ("clip-demo",)}
    assert featurize_command(FeaturizeOptions(**store, run_dir=tmp_path / "run"))["complete"]  # type: ignore[arg-type]
    flags = ("--dataset", str(words_csv), "--split-column", "split", "--run-dir", str(tmp_path / "run"), "--text-model", "demo")
    training = ("--epochs", "20", "--learning-rate", "1e-3", "--device", "cpu", "--seed", "0")
    accuracy = {}
    for privileged in ("images", "shuffled"):
        assert main(["teacher", *flags, *training, "--privileged", privileged, "--name", privileged]) == 0
        accuracy[privileged] = json.loads((tmp_path / "run" / privileged / "metrics.json").read_text())["accuracy"]["test"]
    assert accuracy["images"] > accuracy["shuffled"] + 0.15
