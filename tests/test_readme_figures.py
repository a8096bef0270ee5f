"""The README's figures are the weights'."""

import json
import re
import shutil

import pytest

from release.files import ROOT
from scripts import readme_figures

README = (ROOT / "README.md").read_text()


def test_the_readme_has_the_figures_of_the_weights():
    assert readme_figures.differences(README) == []


def test_figures_that_the_weights_no_longer_have_are_found_and_written(tmp_path, monkeypatch):
    for name in ("handunet", "handunet-base", "handunet-detector"):
        shutil.copytree(ROOT / "weights" / name, tmp_path / name, ignore=shutil.ignore_patterns("figures"))
    metrics = json.loads((tmp_path / "handunet" / "metrics.json").read_text())
    metrics["photographs"] |= {"error_over_box": 0.4321, "pck@0.1": 0.5}
    (tmp_path / "handunet" / "metrics.json").write_text(json.dumps(metrics))
    monkeypatch.setattr(readme_figures, "WEIGHTS", tmp_path)
    (found,) = readme_figures.differences(README)
    kept = f"{metrics['photographs']['pck@0.2']:.3f}"
    assert f" | 491,206 | 1.43 | 0.432 | 0.500 | {kept} |" in found.splitlines()[1]
    older = README.replace("on 50 photographs", "on 49 photographs").replace("3,289,673", "two million")
    assert len(readme_figures.differences(older)) == 3
    rows = [line for line in README.splitlines() if "trained by others" in line]
    assert len(rows) == 1 and rows[0] in readme_figures.with_figures(older)  # a row that is about no weights stays


def test_a_sentence_that_the_readme_lost_is_named():
    with pytest.raises(ValueError, match="no sentence like .*photographs of real hands from"):
        readme_figures.with_figures(re.sub(r"from 8\ssources", "from some", README))
