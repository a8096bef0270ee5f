"""Ask PyPI for known vulnerabilities of the packages that are installed here, by pip-audit (`pip install pip-audit`).

    python -m tools.audit_pins                                  # everything that is installed
    python -m tools.audit_pins --requirement constraints.txt    # only what is pinned

It ends with an error if a package has a known vulnerability that `ACCEPTED` does not name.  Without network it says which
packages nobody could be asked about and ends without an error, because pip-audit itself calls them free of vulnerabilities.
"""

import argparse
import json
import subprocess
import sys

# Vulnerabilities that do not concern this project: the id, and why.
ACCEPTED: dict[str, str] = {}


def audit(*options: str) -> list[dict] | None:
    """pip-audit's entry for each package, or None if it could ask nobody or is not installed."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "15", *options]
    result = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"audit_pins: no answer: {(result.stderr.strip().splitlines() or ['nothing'])[-1][:300]}")
        return None


def judge(packages: list[dict] | None) -> tuple[list[str], str]:
    """The vulnerabilities, a sentence each, and a sentence that says how many packages were asked about."""
    if packages is None:
        return [], "No package could be asked about."
    unknown = [package["name"] for package in packages if "vulns" not in package]
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, mended in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version'}"
        for package in packages
        for vulnerability in package.get("vulns", [])
        if vulnerability["id"] not in ACCEPTED
    ]
    asked = f"{len(packages) - len(unknown)} of {len(packages)} packages were asked about"
    return found, f"{asked}, not {', '.join(unknown)}." if unknown else f"{asked}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requirement", metavar="FILE", help="audit the versions in this file instead")
    args = parser.parse_args()
    # The versions in such a file are pinned, so nothing has to be installed to know them.
    options = ["-r", args.requirement, "--no-deps", "--disable-pip"] if args.requirement else ["--local", "--skip-editable"]
    found, asked = judge(audit(*options))
    print(f"audit_pins: {asked} {len(found)} known vulnerabilities.")
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
