"""The notebook runs from its first cell to its last, and shows what it says."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "tour.ipynb"


@pytest.fixture(scope="module")
def outputs():
    """The outputs of each code cell, by the first line of its source."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), (
        "it is committed without outputs"
    )
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return {cell.source.splitlines()[0]: cell.outputs for cell in cells}


def text(cell_outputs):
    return "".join(
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for output in cell_outputs
    )


@pytest.mark.slow
def test_it_trains_looks_fills_fine_tunes_and_exports(outputs):
    assert "'eval/loss'" in text(outputs['config = recipes.load("quickstart")'])
    model = 'model, params = deberta_jax.load_pretrained(home / "run", "masked_lm")'
    assert "1024)" in text(outputs[model])
    (maps,) = [
        output["data"]["image/png"]
        for cell in outputs.values()
        for output in cell
        if "image/png" in output.get("data", {})
    ]
    assert len(maps) > 20_000
    assert len(text(outputs["position = 3"]).splitlines()) == 5
    scores = text(outputs['lines = ["The night is fair", "Where is the duke", "I know thee well", '
                          '"Come with me now"] * 8'])  # fmt: skip
    assert "'eval/accuracy': 1.0" in scores
    export = text(outputs['deberta_jax.export(home / "task" / "seed_0", home / "export")'])
    assert json.loads(export.splitlines()[0]) == [1, 0] and "model.safetensors" in export
