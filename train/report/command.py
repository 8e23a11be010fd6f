"""``python -m train report``: a whole run on one page that needs no server and no network."""

import shlex
from dataclasses import replace
from typing import Any

from lugpi_core.command_line import say
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusOptions, CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.fields import part_of
from lugpi_core.files import write_text
from lugpi_core.runtime.libraries import prepare_libraries
from train.evidence.row_figures import paper_dataset
from train.models.model_folder import finished_folders
from train.options.tools import ReportOptions, flags_of
from train.options.training import SHOTS
from train.report.content import ReportContent, Selection
from train.report.gather import gather
from train.report.page import page


def report(options: ReportOptions) -> dict[str, Any]:
    """Write ``report.html`` into the run; return where it is and what it shows.

    Raises:
        InputError: no finished model, models of another corpus, no such student, or damaged predictions.
    """
    prepare_libraries()
    content = content_of(options)
    text = page(content)
    write_text(options.written, text)
    for note in content.notes:
        say(f"note: {note}")
    return {
        "command": "report",
        "report": str(options.written),
        "bytes": len(text.encode()),
        "models": sorted(model.folder for row in content.tables.rows.values() for model in row.models),
        "shown": {model.role: model.name for model in content.models},
        "examples": len(content.examples),
        "pictures": sum(example.image is not None for example in content.examples),
        "notes": list(content.notes),
    }


def content_of(options: ReportOptions) -> ReportContent:
    """Return what the page of these options shows. Raises InputError as ``report`` does."""
    if not finished_folders(options.run):
        few = sorted(path for path in options.run.glob(f"{SHOTS}*") if finished_folders(path))
        if few:
            raise InputError(
                got=f"{options.run} with models of a few shots alone",
                expected="models that are trained on all texts",
                do=f"train them (python -m train tables without --shots), or name the folder of one number of shots (--run-dir {few[0]})",
            )
        raise InputError(
            got=f"no finished model in {options.run}",
            expected="one at least",
            do="train them first (python -m train tables, with the same --dataset and its flags), or name the run's folder with --run-dir",
        )
    settings = part_of(options, CorpusSettings)
    selection = Selection(student=options.student, examples=options.examples, seed=options.seed)
    corpus = load_corpus(options.dataset, settings)
    content = gather(corpus, options.run, selection, paper_dataset=paper_dataset(options.dataset, settings))
    return replace(content, notes=(*content.notes, *_notes_of_images(options, content)))


def _notes_of_images(options: ReportOptions, content: ReportContent) -> list[str]:
    """Return the note that some examples lack an image that they could have, with the command that adds it."""
    lacking = sum(example.image is None and "failed image" not in example.flags for example in content.examples)
    if not lacking:
        return []
    run = [] if options.run_dir is None else ["--run-dir", str(options.run_dir)]
    thumbnails = ["--thumbnails", str(max(200, options.examples))]
    command = ["python", "-m", "featurize", "inspect", *flags_of(part_of(options, CorpusOptions)), *run, *thumbnails]
    return [f"{lacking} of {len(content.examples)} examples have no image: run {shlex.join(command)}, and then this command again"]
