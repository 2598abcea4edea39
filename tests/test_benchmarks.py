"""The harness of the benchmarks: what it computes and draws, never how long anything takes."""

import copy
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import plot, report, rounds, traces
from benchmarks.__main__ import PAGE, SUBJECTS
from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target
from benchmarks.workers.payloads import SPOIL, VALUES, sizes


def test_the_order_turns_so_that_everyone_comes_first_and_last_as_often() -> None:
    orders = [rounds.turned(["a", "b", "c"], number) for number in range(6)]
    assert Counter(order[0] for order in orders) == Counter(order[-1] for order in orders) == Counter("abc" * 2)


def test_every_contender_is_asked_once_a_round_in_turn() -> None:
    asked: list[str] = []

    def contender(name: str, seconds: float) -> rounds.Timed:
        def timed(n: int) -> float:
            asked.append(name)
            return seconds * n

        return timed

    series = rounds.interleave({"a": contender("a", 2), "b": contender("b", 1)}, 4, fixed=3)
    assert series == {"a": [2] * 4, "b": [1] * 4}
    assert asked == ["a", "b", "b", "a", "b", "a", "a", "b"]


def test_a_ratio_is_taken_within_each_round() -> None:
    """Noise that doubles both in a round leaves it as it was."""
    assert rounds.ratio({"a": [2, 4, 20], "b": [1, 2, 10]}, "a", "b") == 2


def test_calibration_fills_the_time_and_stops_at_the_most() -> None:
    assert rounds.calibrate(lambda n: n * 1e-4, aim=0.1, most=10_000) == 1_000
    assert rounds.calibrate(lambda n: 0.0, aim=0.1, most=500) == 500


@pytest.mark.parametrize(
    ("value", "text"), [(0.0000015, "1.50 µs"), (0.25, "250 ms"), (3e-8, "30 ns"), (2, "2 s"), (0.0123, "12.3 ms")]
)
def test_durations_are_in_the_unit_that_reads_best(value: float, text: str) -> None:
    assert report.duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123, "0.12"), (1.5, "1.50"), (12.34, "12.3"), (1234.5, "1,234"), (0, "0"), (0.0012, "0.0012")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert report.figure(value) == text


def test_a_target_is_met_from_its_own_side() -> None:
    assert Target("less", 1, 1).met
    assert not Target("less", 1.01, 1).met
    assert Target("more", 1, 1, at_least=True).met
    assert not Target("more", 0.99, 1, at_least=True).met


def test_tables_are_the_same_in_the_terminal_and_on_the_page() -> None:
    table = Table(["a hit", "time"], [["`str`", "1 µs"], ["nested", "**no**"]])
    assert table.markdown().splitlines() == [
        "| a hit | time |",
        "| --- | ---: |",
        "| `str` | 1 µs |",
        "| nested | **no** |",
    ]
    assert table.text().splitlines() == ["a hit   time", "------------", "str     1 µs", "nested    no"]


def test_figures_go_between_their_markers_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n<!-- machine -->\nold\n<!-- /machine -->\nkept\n<!-- hit -->\n<!-- /hit -->\nend\n")
    one = Report("hit", "Hits", tables=[Table(["a"], [["b"]])], plots=[Plot("hit", "Hits", "", [])])
    report.write(page, tmp_path / "bench", [one], "a machine")
    report.write(page, tmp_path / "bench", [one], "a machine")
    text = page.read_text()
    assert text.startswith(
        "# Title\n<!-- machine -->\na machine\n<!-- /machine -->\nkept\n<!-- hit -->\n![Hits](bench/hit.svg)"
    )
    assert text.endswith("| a |\n| --- |\n| b |\n<!-- /hit -->\nend\n")
    assert (tmp_path / "bench" / "hit.svg").exists()
    with pytest.raises(ValueError, match="no <!-- other -->"):
        report.between(text, "other", "")


def test_the_page_has_a_place_for_every_subject() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("machine", *SUBJECTS):
        report.between(text, name, "")


@pytest.mark.parametrize("log", [False, True])
def test_a_plot_is_svg_without_scripts_whose_bars_are_in_order(log: bool) -> None:
    bars = [Bar("less & less", 1, "1"), Bar("more", 10, "10", ours=True), Bar("nothing", 0, "0")]
    root = ElementTree.fromstring(Plot("name", "<Title>", "about", [("group", bars)], log=log).svg())
    space = "{http://www.w3.org/2000/svg}"
    less, more, nothing = (float(bar.attrib["width"]) for bar in root.iter(f"{space}rect"))
    assert nothing <= less < more <= plot.WIDTH - plot.LABELS
    assert [text.text for text in root.iter(f"{space}text") if text.text == "less & less"]
    assert not list(root.iter(f"{space}script"))
    assert max(float(bar.attrib["y"]) for bar in root.iter(f"{space}rect")) < float(root.attrib["height"])


def test_a_trace_is_the_same_every_time_and_prefers_the_first_keys() -> None:
    trace = traces.zipf(5_000, 1_000, 0.9)
    assert trace == traces.zipf(5_000, 1_000, 0.9)
    assert 0 <= min(trace) <= max(trace) < 1_000
    assert [key for key, _ in Counter(trace).most_common(1)] == [0]


def test_scans_are_their_share_of_a_trace_and_never_come_back() -> None:
    trace = traces.with_scans([1] * 7_000, 0.3)
    scanned = [key for key in trace if key < 0]
    assert len(scanned) / len(trace) == pytest.approx(0.3, abs=0.01)
    assert len(set(scanned)) == len(scanned)


def test_lru_drops_what_was_not_used_for_longest() -> None:
    assert traces.lru_ratio([1, 2, 1, 3, 1, 2], 2) == pytest.approx(2 / 6)


def test_payloads_are_a_kilobyte_and_a_careless_caller_changes_all_but_text() -> None:
    assert all(950 <= size <= 1_100 for size in sizes().values())
    for name, value in VALUES.items():
        copied = copy.deepcopy(value)
        SPOIL[name](copied)
        assert (copied == value) == (name == "str")
    assert set(SPOIL) == set(VALUES)
