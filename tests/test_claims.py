"""What is claimed about the networks: computed as the specification says, and found out where it is not."""

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastcnn import analysis
from fastcnn.analysis import Claim, Verdict, _claim, all_claims, check, measure, published, report
from fastcnn.cli import app

EXACT, ROUNDED, WRONG, HISTORICAL = Verdict
PAGE = Path(__file__).parents[1] / "docs" / "claims.md"


@pytest.fixture(scope="module")
def outcomes():
    return [check(claim) for claim in all_claims()]


def test_every_claim_is_there_once():
    assert [claim.number for claim in all_claims()] == list(range(1, 78))
    historical = [claim.number for claim in all_claims() if claim.verdict is HISTORICAL]
    assert historical == [35, 36, 52, 53, 54, 64, 71, 72, 77]


@pytest.mark.parametrize("claim", all_claims(), ids=lambda claim: str(claim.number))
def test_claim(claim):
    outcome = check(claim)
    assert outcome.passed, outcome.failures
    assert bool(outcome.computed) == (claim.verdict is not HISTORICAL)


def test_the_page_is_what_the_command_prints(outcomes):
    if not PAGE.exists():
        pytest.skip("docs are not part of an installation")
    assert PAGE.read_text(encoding="utf-8") == report.markdown(outcomes)


def a_claim(verdict, claimed, specified, computed, **options):
    return Claim(1, "A claim.", verdict, claimed, {**claimed, **specified}, lambda: computed, **options)


@pytest.mark.parametrize(
    ("claim", "failure"),
    [
        (a_claim(EXACT, {"n": 5}, {}, {"n": 6}), "n: computed 6, but specified 5"),
        (a_claim(EXACT, {"n": 5}, {"n": 6}, {"n": 6}), "called exact, but computed otherwise: n"),
        (a_claim(EXACT, {"n": 0.3}, {}, {"n": 0.3 + 1e-6}), "n: computed"),
        (a_claim(EXACT, {"n": 1}, {}, {"n": True}), "n: computed True"),
        (a_claim(EXACT, {"n": (1, 2)}, {}, {"n": (1, 2, 3)}), "n: computed"),
        (a_claim(ROUNDED, {"n": 60_000_000}, {"n": 60_965_224}, {"n": 60_965_224}), "further than 1.0% off: n"),
        (a_claim(ROUNDED, {"n": 5}, {}, {"n": 5}), "called rounded, but exact"),
        (a_claim(WRONG, {"n": 5}, {}, {"n": 5}), "called wrong, but computed as claimed"),
        (a_claim(WRONG, {"n": 5}, {"n": 6}, {"n": 7}), "n: computed 7, but specified 6"),
        (a_claim(WRONG, {"n": 5}, {"n": 6, "m": 1}, {"n": 6}), "m: specified only"),
        (a_claim(WRONG, {"n": 5}, {"n": 6}, {"n": 6, "m": 1}), "m: computed only"),
        (a_claim(EXACT, {"n": 5}, {}, {}), "claimed, but not computed: n"),
        (Claim(1, "A claim.", EXACT, {"n": 5}, {"n": 5}), "nothing computes it"),
    ],
)
def test_a_wrong_claim_is_found(claim, failure):
    outcome = check(claim)
    assert not outcome.passed
    assert any(failure in found for found in outcome.failures), outcome.failures
    assert "FAILS" in report.markdown([outcome])
    assert "1 FAIL" in report.totals([outcome])


def test_a_right_claim_is_not():
    assert check(a_claim(ROUNDED, {"n": 60_000_000}, {"n": 60_965_224}, {"n": 60_965_224}, tolerance=0.02)).passed
    assert check(a_claim(WRONG, {"n": 5}, {"n": 6, "m": 7}, {"n": 6, "m": 7})).passed


@pytest.mark.parametrize("claim", [c for c in all_claims() if c.verdict is not HISTORICAL], ids=lambda c: str(c.number))
def test_every_quantity_of_a_claim_is_compared(claim, outcomes):
    """Another computed value, one quantity at a time, fails."""
    computed = dict(next(outcome for outcome in outcomes if outcome.claim is claim).computed)
    for name, value in computed.items():
        other = (
            not value if isinstance(value, bool) else (*value, 1) if isinstance(value, tuple) else value * 1.001 + 0.001
        )
        planted = dataclasses.replace(claim, compute=lambda name=name, other=other: {**computed, name: other})
        assert not check(planted).passed, name


def test_a_changed_network_is_found(monkeypatch):
    """AlexNet without towers has more parameters, and the claims about them fail."""
    from fastcnn.models import alexnet

    monkeypatch.setattr(measure, "get_model", lambda name, **options: alexnet(towers=1))
    cached = (measure.network, measure.summary)
    for function in cached:
        function.cache_clear()
    try:
        failing = {c.number for c in all_claims() if c.number in (39, 42, 45, 61) and not check(c).passed}
    finally:
        for function in cached:
            function.cache_clear()
    assert failing == {39, 45, 61}


def test_a_number_is_given_once():
    with pytest.raises(ValueError, match="expected each number once, but got 1 again"):
        _claim.historical(1, "Another claim.")


def test_published_figures():
    assert published.top5("ZFNet", "ILSVRC-2013 test") == 13.51
    with pytest.raises(KeyError, match="no top-5 error of 'four-layer network'"):
        published.top5("four-layer network", "CIFAR-10 test")


def run(*arguments):
    return CliRunner().invoke(app, ["claims", *arguments])


def test_command():
    result = run("46", "58")
    assert result.exit_code == 0, result.output
    assert "1.452" in result.stdout
    assert "2 claims: 0 exact, 0 rounded, 2 wrong, 0 historical; all computed as marked" in result.stdout
    assert not result.stderr


def test_command_json():
    (claim,) = json.loads(run("46", "--json").stdout)
    assert claim["verdict"] == "wrong"
    assert claim["claimed"] == {"convolutions above 1 %": 0}
    assert claim["computed"]["conv3, %"] == 1.452
    assert claim["passed"]
    assert claim["failures"] == []


def test_command_fails(monkeypatch):
    wrong = dataclasses.replace(all_claims()[0], compute=lambda: {"height and width": (54, 54)})
    monkeypatch.setattr(analysis, "all_claims", lambda: [wrong])
    for option in ((), ("--json",), ("--markdown",)):
        result = run(*option)
        assert result.exit_code == 1
        assert "claim 1: height and width: computed (54, 54), but specified (55, 55)" in result.stderr


@pytest.mark.parametrize("arguments", [["0"], ["78"], ["one"], ["1", "--json", "--markdown"]])
def test_wrong_usage(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert not result.stdout
