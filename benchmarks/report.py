"""The results as tables of Markdown."""

from benchmarks.rows import GPU_TARGETS


def rounded(value, digits: int = 4):
    """`value` with every float in it at `digits` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list) else value


def duration(seconds: float) -> str:
    """With three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def spread(times: list[float]) -> str:
    """A median with its quartiles."""
    low, median, high = map(duration, times)
    return f"{median} ({low} - {high})"


def target(row: dict) -> str:
    """What the row is to reach."""
    if row["at_least"] is not None:
        return f"{row['at_least']:g} x"
    if row["at_most"] is None:
        return ""
    return f"{row['at_most']:g} MB" if row["memory"] else duration(row["at_most"])


def table(results: dict) -> str:
    """The rows that have been measured; times are a median and its quartiles."""
    lines = ["| what | ours | against | figure | target | |", "|---|---|---|---|---|---|"]
    for row in results["rows"].values():
        if not row["lines"]:
            lines.append(f"| {row['what']} | | | | {target(row)} | {row['verdict']} |")
        for index, line in enumerate(row["lines"]):
            what, wanted, verdict = (row["what"], target(row), row["verdict"]) if index == 0 else ("", "", "")
            against = f"`{line['against']}` {spread(line['its_times'])}" if "against" in line else ""
            value = duration(line["value"])
            if "against" in line:
                value = f"{line['value']:.3g} x"
            elif row["memory"]:
                value = f"{line['value']:.0f} MB"
            ours = f"`{line['ours']}`" if row["memory"] else f"`{line['ours']}` {spread(line['times'])}"
            lines.append(f"| {what} | {ours} | {against} | {value} | {wanted} | {verdict} |")
    for row in results.get("gpu", {}).get("rows", []):
        figure = (row["figure"], row.get("target", ""), row.get("verdict", ""))
        lines.append(f"| one GPU, {row['what']} | | | {' | '.join(figure)} |")
    if not results.get("gpu"):
        lines += [f"| one GPU, {what} | | | | {wanted:,} images/s | not measured: `--gpu` |" for what, wanted in GPU_TARGETS.items()]
    return "\n".join(lines)
