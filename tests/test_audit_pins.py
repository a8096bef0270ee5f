"""The look at known vulnerabilities of the pinned packages tells what it found from what it could not ask."""

import importlib.util

import pytest

from tools import audit_pins

CLEAN = {"name": "pillow", "version": "12.3.0", "vulns": []}
BAD = {"name": "gradio", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
NOT_ASKED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}


def test_a_vulnerability_is_named_with_the_version_that_mends_it(monkeypatch):
    found, asked = audit_pins.judge([CLEAN, BAD])
    assert (found, asked) == (["gradio 1.0: PYSEC-1, mended in 1.1"], "2 of 2 packages were asked about.")
    monkeypatch.setattr(audit_pins, "ACCEPTED", {"PYSEC-1": "the page does not use it"})
    assert audit_pins.judge([CLEAN, BAD])[0] == []


def test_packages_that_nobody_could_be_asked_about_are_not_called_clean():
    assert audit_pins.judge([CLEAN, NOT_ASKED]) == ([], "1 of 2 packages were asked about, not torch.")
    assert audit_pins.judge(None) == ([], "No package could be asked about.")


def test_without_pip_audit_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(audit_pins.sys, "executable", "/bin/false")
    assert audit_pins.audit() is None and "no answer" in capsys.readouterr().out


@pytest.mark.slow
def test_the_pins_have_no_known_vulnerability():
    if not importlib.util.find_spec("pip_audit"):
        pytest.skip("pip-audit is not installed: pip install pip-audit")
    packages = audit_pins.audit("-r", "constraints.txt", "--no-deps", "--disable-pip")
    found, asked = audit_pins.judge(packages)
    if not any("vulns" in package for package in packages or []):
        pytest.skip(asked[:200])
    assert found == []
