"""Refuses a transformers that is too old for this code, with a sentence that says what to do."""

import re

import transformers

MINIMUM_TRANSFORMERS = (5, 23)


def check_transformers_version(version: str = transformers.__version__) -> None:
    """Raise `ImportError` if `version` is older than the code needs."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < MINIMUM_TRANSFORMERS:
        needed = ".".join(map(str, MINIMUM_TRANSFORMERS))
        raise ImportError(
            f"HandUNet needs transformers {needed} or newer, but {version} is installed: "
            f"run `pip install --upgrade 'transformers>={needed},<6'`."
        )


check_transformers_version()
