"""
Draw charts of what was measured: `python -m benchmarks.charts FIGURES.json FOLDER`, of what --json has written.

matplotlib draws them, in an environment of its own, as each peer has one.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ("matplotlib>=3.9",)
OURS = "#b3261e"
OTHERS = ["#35618e", "#5b7f3b", "#b07a1e", "#6b4f8f", "#4f8f8b", "#8a5a44", "#8f8f8f", "#444444"]
Figures = dict[str, list[dict[str, Any]]]


def draw_all(figures: dict[str, Any], folder: Path) -> list[str]:
    """Draw all charts that there are figures for; return why not, if not."""
    from benchmarks.peers import environment

    try:
        python = environment(REQUIREMENTS)
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(figures, file)
        folder.mkdir(parents=True, exist_ok=True)
        command = [str(python), "-m", "benchmarks.charts", file.name, str(folder.absolute())]
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        Path(file.name).unlink()
    except (OSError, subprocess.CalledProcessError) as error:
        return [f"missing: charts: {(getattr(error, 'stderr', None) or str(error)).strip()[-500:]}"]
    return []


def _color(name: str, names: list[str]) -> str:
    if name.startswith("pyprocrastinate"):
        return OURS
    return OTHERS[[each for each in names if not each.startswith("pyprocrastinate")].index(name) % len(OTHERS)]


def _median(rounds: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(each[name] for each in rounds))


def _bars(axes: Any, values: dict[str, float], form: str) -> None:
    names = list(values)[::-1]
    bars = axes.barh(names, [values[name] for name in names], color=[_color(name, names) for name in names])
    axes.bar_label(bars, fmt=form, padding=3)
    axes.margins(x=0.2)


def drain(pyplot: Any, figures: Figures) -> Any:
    """Jobs a second of each system, at concurrency 1, 10 and 100."""
    figure, panes = pyplot.subplots(1, 3, figsize=(12, 4.5), sharey=True)
    for axes, concurrency in zip(panes, ("1", "10", "100"), strict=True):
        _bars(
            axes,
            {k.partition("/")[0]: _median(v, "rate") for k, v in figures.items() if k.endswith(f"/{concurrency}")},
            "{:,.0f}",
        )
        axes.set(xscale="log", title=f"concurrency {concurrency}", xlabel="jobs/s")
        axes.margins(x=0.35)
    figure.suptitle("Drain: one worker process, no-op task")
    return figure


def defer(pyplot: Any, figures: Figures) -> Any:
    """Defers a second, by one connection, by ten, and 1,000 a call."""
    figure, panes = pyplot.subplots(1, 3, figsize=(12, 3.5), sharey=True)
    titles = {"1": "one by one, 1 connection", "10": "one by one, 10 connections", "many": "1,000 a call"}
    for axes, (how, title) in zip(panes, titles.items(), strict=True):
        values = {k.partition("/")[0]: _median(v, "rate") for k, v in figures.items() if k.endswith(f"/{how}")}
        _bars(axes, values, "{:,.0f}")
        axes.set(title=title, xlabel="jobs/s")
        axes.margins(x=0.3)
    figure.suptitle("Defer")
    return figure


def latency(pyplot: Any, figures: Figures) -> Any:
    """Milliseconds from defer to start, p50 and p99."""
    figure, panes = pyplot.subplots(1, 2, figsize=(10, 3.5), sharey=True)
    for axes, name in zip(panes, ("p50", "p99"), strict=True):
        _bars(axes, {key: _median(rounds, name) for key, rounds in figures.items()}, "{:.1f}")
        axes.set(title=name, xlabel="ms")
    figure.suptitle("Latency: defer to start on an idle worker")
    return figure


def horizon(pyplot: Any, figures: Figures) -> Any:
    """Jobs a second over time while an old transaction is open."""
    figure, axes = pyplot.subplots(figsize=(10, 5))
    names = [name for name in figures if name != "core"]
    for name in names:
        course = figures[name][0]["course"]
        axes.plot(
            [at["at"] for at in course],
            [max(1.0, at["rate"]) for at in course],
            label=name,
            color=_color(name, names),
            linewidth=2.2 if name == "pyprocrastinate" else 1.2,
            linestyle=":" if name.startswith("minq") else "-",
        )
    axes.set(
        yscale="log",
        xlabel="seconds",
        ylabel="jobs/s",
        title="A transaction is held open while 500,000 jobs run, or 30 seconds",
    )
    axes.legend()
    return figure


def scale(pyplot: Any, figures: Figures) -> Any:
    """Jobs a second by worker processes, directly and through PgBouncer."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for way, title, color in ("direct", "directly", OURS), ("pooled", "through PgBouncer", OTHERS[0]):
        rates = {int(k.split("/")[0]): _median(v, "rate") for k, v in figures.items() if k.endswith(f"/{way}")}
        if rates:
            axes.plot(list(rates), list(rates.values()), marker="o", label=title, color=color)
    axes.set(xlabel="worker processes", ylabel="jobs/s", ylim=(0, None), title="Scale: on one machine")
    axes.legend()
    return figure


def soak(pyplot: Any, figures: Figures) -> Any:
    """Latency, buffers and size over time, under a steady load."""
    figure, panes = pyplot.subplots(3, 1, figsize=(10, 7), sharex=True)
    course = next(iter(figures.values()))[0]["course"]
    titles = {"p99": "latency p99, ms", "buffers": "buffers a call", "megabytes": "MB of live tables"}
    for axes, (name, title) in zip(panes, titles.items(), strict=True):
        axes.plot([at["at"] for at in course], [at[name] for at in course], color=OURS)
        axes.set(ylabel=title, ylim=(0, None))
        end = course[-1]["at"]
        axes.axvspan(0.1 * end, 0.9 * end, color="#eeeeee")
    panes[-1].set(xlabel="seconds; grey: a transaction is open")
    figure.suptitle("Soak: 2,000 jobs/s")
    return figure


CHARTS: dict[str, Callable[[Any, Figures], Any]] = {
    "drain": drain,
    "defer": defer,
    "latency": latency,
    "horizon": horizon,
    "scale": scale,
    "soak": soak,
}


def main(source: str, folder: str) -> None:
    """Draw, where matplotlib is."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("svg")
    pyplot: Any = import_module("matplotlib.pyplot")
    # Text as text, and the same bytes for the same figures.
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.family": "sans-serif"})
    pyplot.rcParams.update(
        {"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}
    )
    for name, figures in json.loads(Path(source).read_text())["measured"].items():
        if chart := CHARTS.get(name):
            figure = chart(pyplot, figures)
            figure.savefig(Path(folder) / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
