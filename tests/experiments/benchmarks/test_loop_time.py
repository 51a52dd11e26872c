import json

import pytest

from experiments.benchmarks import loop_time
from experiments.benchmarks.loop_time import BAR, LoopTimeConfig, in_words, main
from tests.experiments.small_runs import quiet


@pytest.mark.slow("two real runs")
def test_the_command_times_both_loops(tmp_path, capsys):
    file = tmp_path / "loop_time.json"
    main(["--smoke", "--json", str(file), "--out", str(tmp_path)])
    stored = json.loads(file.read_text())
    # One round: the ratio of the medians is the median of the ratios.
    assert stored["ratio"] == pytest.approx(stored["loop_ms"] / stored["bare_ms"])
    assert stored["bare_ms"] > 0
    assert in_words(stored) in capsys.readouterr().out


def test_ratios_are_of_the_same_round_and_stay(tmp_path, monkeypatch, committed):
    # The first turns of a command compile and do not count.
    loop, bare = iter([9.0, 1.0, 9.0, 10.0, 3.0]), iter([1.0, 1.0, 1.0, 10.0, 2.0])

    class Bare:
        def __init__(self, prepared):
            self.seconds = lambda: next(bare)

    monkeypatch.setattr(loop_time, "prepare", lambda settings: None)
    monkeypatch.setattr(loop_time, "_Bare", Bare)
    monkeypatch.setattr(loop_time, "_in_loop", lambda *_: next(loop))
    loop_time.measure(LoopTimeConfig(rounds=1, out=tmp_path), quiet())
    config = LoopTimeConfig(rounds=3, out=tmp_path)
    expected = {
        "loop_ms": 3000.0,
        "bare_ms": 2000.0,
        "ratio": 1.0,
        "quartiles": [1.0, 1.25],
    }
    assert loop_time.measure(config, quiet()) == expected
    # Nothing is left to be timed.
    monkeypatch.delattr(loop_time, "prepare")
    assert loop_time.measure(config, quiet()) == expected


@pytest.mark.parametrize(("ratio", "verdict"), [(BAR, "holds"), (1.11, "missed")])
def test_the_bar_is_said(ratio, verdict):
    times = {"loop_ms": 1, "bare_ms": 1, "quartiles": [1.0, 1.2]}
    stored = {"model": "m", "rounds": 1, "ratio": ratio, **times}
    assert in_words(stored).endswith(f"the bar of {BAR} {verdict}")


def test_no_round_is_refused():
    with pytest.raises(SystemExit, match="`rounds` must be >= 1, got 0"):
        main(["--rounds", "0"])
