"""Which services are offered, by the results of their checks: on virtual time, so that each second is exact."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from goreprox.config.addresses import Target
from goreprox.config.target_checks import Check, CheckConfig
from goreprox.errors import ConfigError
from goreprox.roles.examination import UnwellError
from goreprox.roles.target_checks import Condition, TargetChecks, Verdict
from tests.sim.world import Process, World

WEB, DB = Target.parse("web=80"), Target.parse("db=5432")
EVERY = CheckConfig(checks=(Check(),), interval_s=5, timeout_s=2, failures=3, successes=2)


@pytest.mark.parametrize(
    ("begin", "results", "end"),
    [
        (Condition.UNKNOWN, "+", Condition.WELL),
        (Condition.UNKNOWN, "-", Condition.WITHDRAWN),
        (Condition.WELL, "--", Condition.WELL),
        (Condition.WELL, "---", Condition.WITHDRAWN),
        (Condition.WELL, "--+--", Condition.WELL),
        (Condition.WELL, "--+---", Condition.WITHDRAWN),
        (Condition.WITHDRAWN, "+", Condition.WITHDRAWN),
        (Condition.WITHDRAWN, "+-+", Condition.WITHDRAWN),
        (Condition.WITHDRAWN, "++", Condition.WELL),
        (Condition.WELL, "---++--", Condition.WELL),
        (Condition.WELL, "---++---", Condition.WITHDRAWN),
    ],
)
def test_results_in_a_row_decide(begin: Condition, results: str, end: Condition) -> None:
    verdict, changes, condition = Verdict(begin, 0.0), 0, begin
    for now, result in enumerate(results, 1):
        changed = verdict.note(None if result == "+" else "why", failures=3, successes=2, now=float(now))
        assert changed is (verdict.condition is not condition)
        if changed:
            changes, condition = changes + 1, verdict.condition
            assert verdict.since == now
    assert verdict.condition is end
    assert verdict.problem == (None if results.endswith("+") else "why")


class Checked:
    """A provider's checks on virtual time, of targets whose condition the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, config: CheckConfig, *targets: Target) -> None:
        self.world = World(1)
        self.process = Process(self.world, "p0")
        self.unwell: set[str] = set()
        """Services whose checks fail."""
        self.takes_s = 0.0
        self.fault: Exception | None = None
        self.begun: list[tuple[float, str]] = []
        """The checks, and when each began."""
        self.under_way: set[str] = set()
        self.offered: list[tuple[float, list[str]]] = []
        """What was announced, and when."""
        monkeypatch.setattr("goreprox.roles.target_checks.clock", self.process.boot_time)
        self.checks: TargetChecks = self.process.run(lambda: TargetChecks(targets, config, examine=self.examine))
        self.checks.changed = lambda: self.offered.append((self.world.now, self.checks.offered))

    async def examine(self, target: Target, check: Check, timeout_s: float) -> None:
        self.begun.append((round(self.world.now, 6), target.service))
        assert target.service not in self.under_way
        self.under_way.add(target.service)
        if self.takes_s:
            await asyncio.sleep(self.takes_s)
        self.under_way.remove(target.service)
        if self.fault is not None:
            raise self.fault
        if target.service in self.unwell:
            raise UnwellError("status 500")

    def run(self, work: Callable[[], object]) -> None:
        self.process.run(work)

    def until(self, time_s: float) -> None:
        self.world.run_until(time_s)

    def reconfigure(self, targets: Sequence[Target], config: CheckConfig) -> None:
        self.run(lambda: self.checks.reconfigure(targets, config, examine=self.examine))

    def close(self) -> None:
        self.run(self.checks.close)
        self.until(self.world.now + 1)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Any:
    made: list[Checked] = []

    def make(config: CheckConfig = EVERY, *targets: Target) -> Checked:
        made.append(Checked(monkeypatch, config, *(targets or (WEB, DB))))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_service_is_withdrawn_by_the_third_failure_and_offered_again_by_the_second_success(checked: Any) -> None:
    made = checked()
    assert made.checks.offered == []
    made.run(made.checks.start)
    made.until(0.0)
    assert made.checks.offered == ["web", "db"]
    made.until(7.0)
    made.unwell.add("web")  # the checks at 10, 15 and 20 s fail
    made.until(19.9)
    assert made.checks.offered == ["web", "db"]
    made.until(20.0)
    assert (
        made.checks.status["web"]["condition"] == "withdrawn" and made.checks.status["web"]["problem"] == "status 500"
    )
    made.until(22.5)
    assert made.checks.status["web"]["since_s"] == 2.5
    made.unwell.clear()
    made.until(60.0)
    assert made.offered[2:] == [(20.0, ["db"]), (30.0, ["web", "db"])]
    assert [at for at, service in made.begun if service == "web"] == [5.0 * count for count in range(13)]


def test_without_a_check_a_service_is_offered_from_the_beginning_and_never_checked(checked: Any) -> None:
    made = checked(CheckConfig(checks=(Check("web"),)))
    assert made.checks.offered == ["db"]
    made.unwell.add("web")
    made.run(made.checks.start)
    made.until(60.0)
    assert made.checks.offered == ["db"] and "db" not in made.checks.status
    assert {service for _, service in made.begun} == {"web"}


def test_a_check_that_takes_longer_than_the_interval_delays_the_next_one(checked: Any) -> None:
    made = checked(EVERY, WEB)
    made.takes_s = 7.0
    made.run(made.checks.start)
    made.until(20.0)
    assert [at for at, _ in made.begun] == [0.0, 7.0, 14.0]


def test_a_check_that_finds_nothing_out_changes_nothing(checked: Any, warnings: list[str]) -> None:
    made = checked(EVERY, WEB)
    made.run(made.checks.start)
    made.until(1.0)
    made.fault = OSError(24, "Too many open files")
    made.until(60.0)
    assert made.checks.offered == ["web"] and len(made.begun) == 13
    assert "cannot check the target 127.0.0.1:80 of the service web: [Errno 24]" in warnings[0]
    assert len(warnings) == 1


def test_changes_are_logged(checked: Any, events: list[dict[str, object]]) -> None:
    made = checked(EVERY, WEB)
    made.unwell.add("web")
    made.run(made.checks.start)
    made.until(1.0)
    made.unwell.clear()
    made.until(11.0)
    assert [(each["event"], each["service"]) for each in events] == [
        ("service_withdrawn", "web"),
        ("service_offered", "web"),
    ]
    assert "fails the check tcp: status 500" in str(events[0]["message"])


# -- reload


def test_a_reload_leaves_offered_services_offered_until_their_checks_fail(checked: Any) -> None:
    made = checked(CheckConfig(), WEB, DB)
    made.run(made.checks.start)
    assert made.checks.offered == ["web", "db"] and not made.begun
    made.unwell.update(("web", "mail"))
    made.reconfigure([WEB, DB, Target.parse("mail=25")], EVERY)
    assert made.checks.offered == ["web", "db"], "nothing is known of the new one"
    made.until(9.9)
    assert made.checks.offered == ["web", "db"]
    made.until(10.0)
    assert made.checks.offered == ["db"]
    made.reconfigure([WEB, DB], CheckConfig())
    assert made.checks.offered == ["web", "db"] and not made.checks.status, "without checks all are offered"
    begun = len(made.begun)
    made.until(60.0)
    assert len(made.begun) == begun


def test_a_reload_that_changes_nothing_of_a_check_keeps_its_results_and_its_rhythm(checked: Any) -> None:
    made = checked(EVERY, WEB)
    made.run(made.checks.start)
    made.until(1.0)
    made.unwell.add("web")
    for second in range(2, 30):
        made.until(float(second))
        made.reconfigure([WEB], EVERY)
    assert made.offered[1:] == [(15.0, [])]
    assert [at for at, _ in made.begun] == [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]


def test_another_interval_holds_at_once_and_a_withdrawn_service_stays_so(checked: Any) -> None:
    made = checked(CheckConfig(checks=(Check(),), interval_s=86_400), WEB)
    made.unwell.add("web")
    made.run(made.checks.start)
    made.until(1.0)
    made.unwell.clear()
    made.reconfigure([WEB], EVERY)
    made.until(1.0)
    assert made.checks.offered == [], "one success is not enough: it was withdrawn"
    made.until(6.0)
    assert made.checks.offered == ["web"]


def test_a_withdrawn_service_whose_target_has_moved_is_offered_after_its_first_success(checked: Any) -> None:
    made = checked(EVERY, WEB)
    made.unwell.add("web")
    made.run(made.checks.start)
    made.until(1.0)
    made.unwell.clear()
    made.reconfigure([Target.parse("web=81")], EVERY)
    assert made.checks.offered == []
    made.until(1.0)
    assert made.checks.offered == ["web"]


# -- upgrade


def test_after_an_upgrade_withdrawn_services_stay_withdrawn_until_proven_and_offered_ones_offered(checked: Any) -> None:
    made = checked()
    made.run(lambda: made.checks.restore(["db"]))
    assert made.checks.offered == ["db"]
    made.unwell.add("db")
    made.run(made.checks.start)
    made.until(4.9)
    assert made.checks.offered == ["db"]
    made.until(5.0)
    assert made.checks.offered == ["web", "db"]
    made.until(10.0)
    assert made.checks.offered == ["web"]


def test_a_version_without_checks_has_offered_every_service(checked: Any) -> None:
    made = checked()
    made.run(lambda: made.checks.restore(None))
    assert made.checks.offered == ["web", "db"]


# -- options


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("tcp", Check()),
        ("web=tcp", Check("web")),
        ("http:/", Check(None, "/")),
        ("http:/a?b=c=d", Check(None, "/a?b=c=d")),
        ("web=http:/a?b=c", Check("web", "/a?b=c")),
        ("tcp=tcp", Check("tcp")),
    ],
)
def test_checks_are_read_and_written(text: str, check: Check) -> None:
    assert Check.parse(text) == check
    assert check.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "web",
        "web=",
        "=tcp",
        "udp",
        "http:",
        "http:a",
        "https:/",
        "http:/a b",
        "http:/\r\nX: y",
        "http:/ä",
        "-a=tcp",
    ],
)
def test_what_is_no_check_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="write \\[SERVICE=\\]tcp or \\[SERVICE=\\]http:PATH"):
        Check.parse(text)
    with pytest.raises(ConfigError):
        Check.parse(f"http:/{'a' * 1024}")
