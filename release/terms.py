"""The terms under which weights may be used: those of the data and those of the weights that the training started from.

If the two differ, the stricter ones hold.  Terms are plain data, as a source of data states them:

    license       as the Hub writes it, or "unknown"
    license_name  of a license that the Hub has no name for, or None
    license_link  a page that explains it, or None
    datasets      names of the datasets that the weights were trained on
    citation      BibTeX entries
    text          sentences for the card
"""

import os
import re
from pathlib import Path

import httpx2
import yaml
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download

RESEARCH_ONLY = "research-only"  # a `license_name`
UNKNOWN = "unknown"
# Weights that started from weights under one of these may be published under the project's own license.
PERMISSIVE = ("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense", "isc")
# Datasets that allow research only, with the page that says so.  Any weights trained on them are bound to that, whatever
# their card states as the license.
RESEARCH_DATASETS = {"freihand": "https://lmb.informatik.uni-freiburg.de/projects/freihand/"}


def find_terms(report: dict) -> dict:
    """The terms of a run's weights, and `base_model`, the id on the Hub of the model that they started from, or None."""
    terms = {**report["source"]["terms"], "base_model": None}
    if report["init"]:
        terms = combine_terms(terms, report["init"], read_card(report["init"]["path"]))
    if terms["license"] == "apache-2.0":
        terms["text"] += " The weights are free under the Apache License 2.0."
    return terms | {"text": terms["text"].strip()}


def combine_terms(own: dict, init: dict, card: ModelCard | None) -> dict:
    """The terms `own` of the data together with those that `card` states for the weights `init`; no card states none."""
    stated = ModelCardData() if card is None else card.data
    license, name = stated.get("license"), stated.get("license_name")
    datasets = stated.get("datasets") or []
    datasets = [datasets] if isinstance(datasets, str) else datasets
    page = next((RESEARCH_DATASETS[dataset] for dataset in datasets if dataset in RESEARCH_DATASETS), None)
    for_research = own["license_name"] == RESEARCH_ONLY
    text, stricter = f"Training started from `{init['name']}`", {}
    if page or name == RESEARCH_ONLY:
        text += ", which was trained on data for research only."
        if not for_research:
            text += " **These weights may be used for research only, not commercially.**"
            stricter = {"license": "other", "license_name": RESEARCH_ONLY, "license_link": page or stated.get("license_link")}
    elif not license:
        text += ", which states no terms: ask its author before you use these weights."
        if not for_research:
            stricter = {"license": UNKNOWN, "license_name": None, "license_link": None}
    elif license in PERMISSIVE:
        text += f" ({license})."
    else:
        text += f", whose terms also hold: {name or license}."
        if own["license"] in PERMISSIVE:
            stricter = {"license": license, "license_name": name, "license_link": stated.get("license_link")}
    citations = [] if card is None else find_citations(card.text)
    return {
        **own,
        **stricter,
        "datasets": list(dict.fromkeys([*datasets, *own["datasets"]])),
        "citation": own["citation"] + "".join(entry for entry in citations if entry not in own["citation"]),
        "text": f"{own['text']} {text}",
        "base_model": stated.get("base_model") if os.path.isdir(init["path"]) else init["path"],
    }


def find_citations(card: str) -> list[str]:
    """The BibTeX entries of a card, without the project's own."""
    entries = re.findall(r"^@\w+\{.*?^\}\n", card, re.DOTALL | re.MULTILINE)
    return [entry for entry in entries if not entry.startswith("@software{handunet,")]


def read_card(name: str) -> ModelCard | None:
    """The card of a model, a folder or an id on the Hub; None if there is none or if it cannot be read."""
    try:
        path = Path(name) / "README.md" if os.path.isdir(name) else hf_hub_download(name, "README.md")
        return ModelCard.load(path, ignore_metadata_errors=True)
    except (OSError, ValueError, httpx2.HTTPError, yaml.YAMLError):
        return None
