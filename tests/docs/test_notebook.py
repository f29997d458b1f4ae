"""The notebook of the examples runs from top to bottom in a kernel, holds no output, and ends in the page of its run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_module.ipynb"


def test_it_is_kept_without_output() -> None:
    cells = nbformat.read(NOTEBOOK, 4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the notebook tools themselves
def test_it_runs_and_shows_the_page(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    (shown,) = [output for output in notebook.cells[-1].outputs if output.output_type == "execute_result"]
    assert "<iframe" in shown.data["text/html"] and "deep" in shown.data["text/html"]
    assert notebook.cells[-3].outputs[0].data["text/plain"].startswith("[('shallow', 0, 96)")
    assert (tmp_path / "runs" / "spirals-001" / "final").is_dir()
