"""
When a cron expression fires.

The answers of `cron_next` are compared with cronsim's on random expressions; with an oracle that
tries every minute, or second, around changes of the clocks; and with what people expect, written
out.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim, CronSimError

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
RANGES = {
    "minute": (0, 59),
    "hour": (0, 23),
    "day of month": (1, 31),
    "month": (1, 12),
    "day of week": (0, 7),
    "second": (0, 59),
}


def cron_next(db, expression, after, timezone="UTC"):
    """Return the next tick as the database tells it, in UTC."""
    found = db.one("select procrastinate.cron_next(%s, %s, %s)", expression, after, timezone)
    return found and found.astimezone(UTC)


def all_next(db, questions):
    """Return the next ticks of many (expression, after, timezone)."""
    rows = db.rows(
        "select procrastinate.cron_next(q.expression, q.after, q.timezone) as tick"
        "  from unnest(%s::text[], %s::timestamptz[], %s::text[])"
        "       with ordinality as q (expression, after, timezone, ord) order by q.ord",
        *(list(column) for column in zip(*questions, strict=True)),
    )
    return [row.tick and row.tick.astimezone(UTC) for row in rows]


def ticks(db, expression, timezone, start, end, form="%H:%M%z"):
    """Return the ticks between two local times, as clocks on the wall show them."""
    zone = ZoneInfo(timezone)
    tick = datetime.fromisoformat(start).replace(tzinfo=zone).astimezone(UTC)
    end = datetime.fromisoformat(end).replace(tzinfo=zone).astimezone(UTC)
    found = []
    while tick := cron_next(db, expression, tick, timezone):
        if tick > end:
            return found
        found.append(tick.astimezone(zone).strftime(form))
    return found


# ---- what may be written


@pytest.mark.parametrize(
    ("expression", "tick"),
    [
        ("* * * * *", "2026-01-01 00:01:00"),
        ("*/15 * * * *", "2026-01-01 00:15:00"),
        ("7/15 * * * *", "2026-01-01 00:07:00"),
        ("5-5/10 * * * *", "2026-01-01 00:05:00"),
        ("*/120 * * * *", "2026-01-01 01:00:00"),
        ("30 8-18/5 * * *", "2026-01-01 08:30:00"),
        ("0 0,6,12 * * *", "2026-01-01 06:00:00"),
        ("0 0 29 2 *", "2028-02-29 00:00:00"),
        ("0 0 * jun-aug *", "2026-06-01 00:00:00"),
        ("0 0 * JAN,Dec mon", "2026-01-05 00:00:00"),
        ("0 0 * * Mon-Fri", "2026-01-02 00:00:00"),
        ("0 0 * * 0", "2026-01-04 00:00:00"),
        ("0 0 * * 7", "2026-01-04 00:00:00"),
        ("0 0 * * sun", "2026-01-04 00:00:00"),
        ("0 0 * * sat-sun", "2026-01-03 00:00:00"),
        ("0 0 * * 6-7", "2026-01-03 00:00:00"),
        ("  0\t0  *\n* mon ", "2026-01-05 00:00:00"),
        ("@hourly", "2026-01-01 01:00:00"),
        ("@daily", "2026-01-02 00:00:00"),
        ("@midnight", "2026-01-02 00:00:00"),
        ("@weekly", "2026-01-04 00:00:00"),
        ("@monthly", "2026-02-01 00:00:00"),
        ("@yearly", "2027-01-01 00:00:00"),
        ("@Annually", "2027-01-01 00:00:00"),
        ("* * * * * *", "2026-01-01 00:00:01"),
        ("0 * * * * */10", "2026-01-01 00:00:10"),
        ("0 12 * * * 30", "2026-01-01 12:00:30"),
        ("0 0 1 1 * 0", "2027-01-01 00:00:00"),
    ],
)
def test_an_expression_fires_next(db, expression, tick):
    after = datetime(2026, 1, 1, tzinfo=UTC)
    assert cron_next(db, expression, after) == datetime.fromisoformat(tick).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "days"),
    [
        # Of two day fields that both restrict, either will do …
        ("0 0 13 * fri", [2, 9, 13, 16, 23, 30]),
        ("0 0 1-2 * 0/7", [1, 2, 4, 11, 18, 25]),
        # … and both must do as soon as one begins with an asterisk.
        ("0 0 */2 * fri", [9, 23]),
        ("0 0 13,16 * */5", [16]),
        ("0 0 * * fri", [2, 9, 16, 23, 30]),
        ("0 0 13 * *", [13]),
    ],
)
def test_both_day_fields(db, expression, days):
    found = ticks(db, expression, "UTC", "2025-12-31T23:59", "2026-01-31T23:59", form="%d")
    assert [int(day) for day in found] == days


@pytest.mark.parametrize("expression", ["0 0 31 2 *", "0 0 31 apr,jun,sep,nov *", "0 0 30 2 */2"])
def test_a_day_that_never_comes(db, expression):
    assert cron_next(db, expression, datetime(2026, 1, 1, tzinfo=UTC)) is None


def test_the_longest_wait_there_is(db):
    # 29 February on a Sunday: after 2088 not before 2128, because 2100 is no leap year.
    found = cron_next(db, "0 0 29 2 */7", datetime(2088, 2, 29, tzinfo=UTC))
    assert found == datetime(2128, 2, 29, tzinfo=UTC)
    assert found.isoweekday() == 7


def test_the_tick_is_later_than_the_time_given(db):
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert cron_next(db, "0 12 * * *", noon) == noon + DAY
    assert cron_next(db, "0 12 * * *", noon - timedelta(microseconds=1)) == noon
    assert cron_next(db, "* * * * * *", noon + timedelta(microseconds=1)) == noon + MINUTE / 60


def test_no_answer_without_a_question(db):
    assert db.one("select procrastinate.cron_next(null, now())") is None
    assert db.one("select procrastinate.cron_next('* * * * *', null)") is None
    assert db.one("select procrastinate.cron_next('* * * * *', now(), null)") is None


def test_the_settings_of_the_session_do_not_matter(session):
    db = session()
    questions = [
        (expression, datetime(2026, 3, 28, 20, tzinfo=UTC) + hours * 60 * MINUTE, "Europe/Berlin")
        for expression in ["0 0 1 * *", "30 2 * * *", "@weekly", "*/20 1-3 29 * *"]
        for hours in range(12)
    ]
    right = [int(tick.timestamp()) for tick in all_next(db, questions)]
    for setting in ["timezone = 'Pacific/Apia'", "datestyle = 'German, DMY'"]:
        db.conn.execute(f"set {setting}")
    db.conn.execute("set intervalstyle = 'iso_8601'")
    for (expression, after, timezone), epoch in zip(questions, right, strict=True):
        assert epoch == db.one(
            "select extract(epoch from procrastinate.cron_next(%s, to_timestamp(%s), %s))::bigint",
            *(expression, after.timestamp(), timezone),
        )


BAD = {
    "": "0 of the 5 or 6 fields",
    "* * * *": "4 of the 5 or 6 fields",
    "* * * * * * *": "7 of the 5 or 6 fields",
    "@fortnightly": "1 of the 5 or 6 fields",
    "@reboot": "1 of the 5 or 6 fields",
    "60 * * * *": 'minute: "60" is not within 0 to 59',
    "* 24 * * *": 'hour: "24" is not within 0 to 23',
    "* * 0 * *": 'day of month: "0" is not within 1 to 31',
    "* * 32 * *": 'day of month: "32" is not within 1 to 31',
    "* * * 13 *": 'month: "13" is not within 1 to 12',
    "* * * 0 *": 'month: "0" is not within 1 to 12',
    "* * * * 8": 'day of week: "8" is not within 0 to 7',
    "* * * * * 60": 'second: "60" is not within 0 to 59',
    "5-60 * * * *": 'minute: "5-60" is not within 0 to 59',
    "10-5 * * * *": 'minute: "10-5" ends before it begins',
    "* 22-2 * * *": 'hour: "22-2" ends before it begins',
    "* * * * fri-mon": 'day of week: "fri-mon" ends before it begins',
    "*/0 * * * *": 'minute: the step of "*/0" is zero',
    "99999999999 * * * *": 'minute: "99999999999" cannot be read',
    "*/99999999999 * * * *": 'minute: "*/99999999999" cannot be read',
    "0-99999999999999999999 * * * *": 'minute: "0-99999999999999999999" cannot be read',
    "-1 * * * *": 'minute: "-1" cannot be read',
    "+1 * * * *": 'minute: "+1" cannot be read',
    "1.5 * * * *": 'minute: "1.5" cannot be read',
    "1,,2 * * * *": 'minute: "" cannot be read',
    "1, * * * *": 'minute: "" cannot be read',
    "1-2-3 * * * *": 'minute: "1-2-3" cannot be read',
    "*/2/3 * * * *": 'minute: "*/2/3" cannot be read',
    "** * * * *": 'minute: "**" cannot be read',
    "*-5 * * * *": 'minute: "*-5" cannot be read',
    "jan * * * *": 'minute: "jan" cannot be read',
    "* * * mon *": 'month: "mon" cannot be read',
    "* * * * jan": 'day of week: "jan" cannot be read',
    "* * * * monday": 'day of week: "monday" cannot be read',
    "* * L * *": 'day of month: "l" cannot be read',
    "* * * * 1#2": 'day of week: "1#2" cannot be read',
    "? * * * *": 'minute: "?" cannot be read',
    "((((( * * * *": 'minute: "(((((" cannot be read',
    "[[:alpha:]] * * * *": 'minute: "[[:alpha:]]" cannot be read',
    "\N{ARABIC-INDIC DIGIT FIVE} * * * *": "cannot be read",
    "* * * * * '; drop schema procrastinate; --": "10 of the 5 or 6 fields",
    "x" * 1000 + " * * * *": "It has 1008 characters",
    "0," * 500_000 + "0 * * * *": "It has 1000009 characters",
    " ".join(["*"] * 400): "400 of the 5 or 6 fields",
}


@pytest.mark.parametrize("expression", BAD, ids=[expression[:30] for expression in BAD])
def test_a_bad_expression_is_refused(db, expression):
    with db.refused("JQ020", "bad cron expression", detail=BAD[expression], hint="minute, hour"):
        cron_next(db, expression, datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("timezone", ["", "Europe/Berlinn", "Mars", "x" * 10_000, "'; drop", "é"])
def test_an_unknown_time_zone_is_refused(db, timezone):
    with db.refused("JQ021", "unknown time zone", detail=timezone[:100], hint="pg_timezone_names"):
        cron_next(db, "* * * * *", datetime(2026, 1, 1, tzinfo=UTC), timezone)


@pytest.mark.parametrize("after", ["infinity", "-infinity", "1000-01-01", "10000-01-01"])
def test_an_absurd_time_is_refused(db, after):
    with db.refused("JQ013"):
        db.one("select procrastinate.cron_next('* * * * *', %s::timestamptz)", after)


def test_the_last_tick_of_a_span(db):
    for expression, after, upto, tick in [
        ("*/5 * * * *", "2026-01-01 00:00", "2026-01-01 00:04:59", None),
        ("*/5 * * * *", "2026-01-01 00:00", "2026-01-01 00:05", "2026-01-01 00:05"),
        ("*/5 * * * *", "2026-01-01 00:00", "2026-06-01 00:00:30", "2026-06-01 00:00"),
        ("0 0 1 * *", "2020-01-01 00:00", "2026-06-30 00:00", "2026-06-01 00:00"),
        ("* 12 * * * *", "2026-01-01 00:00", "2026-01-01 13:00", "2026-01-01 12:59:59"),
        ("0 0 31 2 *", "2020-01-01 00:00", "2026-06-30 00:00", None),
        ("* * * * *", "2026-01-01 00:00", "2025-01-01 00:00", None),
    ]:
        found = db.one(
            "select procrastinate._cron_last(%s, %s::timestamp at time zone 'UTC',"
            " %s::timestamp at time zone 'UTC', 'UTC') at time zone 'UTC'",
            *(expression, after, upto),
        )
        assert found == (tick and datetime.fromisoformat(tick)), (expression, after, upto)


# ---- the days on which the clocks are changed, by name

NEW_YORK, BERLIN, LORD_HOWE = "America/New_York", "Europe/Berlin", "Australia/Lord_Howe"
SPRING_NY = (NEW_YORK, "2026-03-07T23:59", "2026-03-08T23:59")
AUTUMN_NY = (NEW_YORK, "2026-10-31T23:59", "2026-11-01T23:59")
SPRING_BERLIN = (BERLIN, "2026-03-28T23:59", "2026-03-29T23:59")
AUTUMN_BERLIN = (BERLIN, "2026-10-24T23:59", "2026-10-25T23:59")
AUTUMN_LORD_HOWE = (LORD_HOWE, "2026-04-04T23:59", "2026-04-05T23:59")
SPRING_LORD_HOWE = (LORD_HOWE, "2026-10-03T23:59", "2026-10-04T23:59")


@pytest.mark.parametrize(
    ("expression", "span", "expected"),
    [
        # A time that the clocks leave out runs as much later as they are put forward …
        ("30 2 * * *", SPRING_NY, "03:30-0400"),
        ("0,30 1-3 * * *", SPRING_NY, "01:00-0500, 01:30-0500, 03:00-0400, 03:30-0400"),
        ("30 2 * * *", SPRING_BERLIN, "03:30+0200"),
        ("0 2,3 * * *", SPRING_BERLIN, "03:00+0200"),
        ("15 2 * * *", SPRING_LORD_HOWE, "02:45+1100"),
        ("0 2 * * *", SPRING_LORD_HOWE, "02:30+1100"),
        # … and one that they show twice runs the first time.
        ("30 1 * * *", AUTUMN_NY, "01:30-0400"),
        ("0 0-3 * * *", AUTUMN_NY, "00:00-0400, 01:00-0400, 02:00-0500, 03:00-0500"),
        ("30 2 * * *", AUTUMN_BERLIN, "02:30+0200"),
        ("45 1 * * *", AUTUMN_LORD_HOWE, "01:45+1100"),
        ("30 1 * * *", AUTUMN_LORD_HOWE, "01:30+1100"),
        ("0 2 * * *", AUTUMN_LORD_HOWE, "02:00+1030"),
        # What runs every so often does so at even distances: it neither doubles nor drops a run.
        ("*/30 1-3 * * *", SPRING_NY, "01:00-0500, 01:30-0500, 03:00-0400, 03:30-0400"),
        ("*/30 2 * * *", SPRING_NY, ""),
        ("*/30 1 * * *", AUTUMN_NY, "01:00-0400, 01:30-0400, 01:00-0500, 01:30-0500"),
        ("*/30 2 * * *", AUTUMN_BERLIN, "02:00+0200, 02:30+0200, 02:00+0100, 02:30+0100"),
        ("*/15 2 * * *", SPRING_BERLIN, ""),
        ("*/15 1-2 * * *", SPRING_LORD_HOWE, "01:00+1030, 01:15+1030, 01:30+1030, 01:45+1030, 02:30+1100, 02:45+1100"),
        ("*/15 1 * * *", AUTUMN_LORD_HOWE, "01:00+1100, 01:15+1100, 01:30+1100, 01:45+1100, 01:30+1030, 01:45+1030"),
        # With a fixed minute but any hour it runs every hour that passes.
        ("15 */12 * * *", AUTUMN_NY, "00:15-0400, 12:15-0500"),
    ],
)
def test_the_day_the_clocks_change(db, expression, span, expected):
    assert ", ".join(ticks(db, expression, *span)) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 12 * * *", ["29 12:00", "31 12:00"]),
        ("0 12 30 * *", ["31 12:00"]),
        ("0 */12 * * *", ["29 00:00", "29 12:00", "31 00:00", "31 12:00"]),
        ("0 */12 30 * *", []),
    ],
)
def test_samoa_left_out_30_december_2011(db, expression, expected):
    span = ("Pacific/Apia", "2011-12-28T23:59", "2011-12-31T23:59")
    assert ticks(db, expression, *span, form="%d %H:%M") == expected


@pytest.mark.parametrize(
    ("span", "hours"),
    [
        (SPRING_NY, 23),
        (AUTUMN_NY, 25),
        (SPRING_BERLIN, 23),
        (AUTUMN_BERLIN, 25),
        (SPRING_LORD_HOWE, 23.5),
        (AUTUMN_LORD_HOWE, 24.5),
    ],
)
def test_every_half_hour_of_such_a_day(db, span, hours):
    assert len(ticks(db, "*/30 * * * *", *span)) == hours * 2
    assert len(ticks(db, "0,30 0-23 * * *", *span)) == {0.5: 48 - 1, 1: 48 - 2}.get(24 - hours, 48)


# ---- an oracle that tries them all


@dataclasses.dataclass
class Oracle:
    """An expression, read once more and by other means."""

    expression: str

    def __post_init__(self) -> None:
        fields = [*self.expression.split(), "0"]
        self.sets = [set(self.values(text.lower(), *RANGES[name])) for name, text in zip(RANGES, fields, strict=False)]
        self.both = fields[2][0] == "*" or fields[4][0] == "*"
        self.real = "*" in (fields[0][0], fields[1][0], fields[5][0])

    @staticmethod
    def values(text: str, low: int, high: int) -> Iterator[int]:
        for number, name in enumerate(MONTHS if low else DAYS, low):
            text = text.replace(name, str(number))
        for part in text.split(","):
            span, _, step = part.partition("/")
            first, _, last = span.partition("-")
            if span == "*":
                first, last = str(low), str(high)
            elif not last:
                last = str(high) if step else first
            yield from range(int(first), int(last) + 1, int(step or 1))

    def matches(self, wall: datetime) -> bool:
        """Tell whether clocks that show this time satisfy the expression."""
        minutes, hours, _, _, _, seconds = self.sets
        return wall.minute in minutes and wall.hour in hours and wall.second in seconds and self.matches_day(wall)

    def matches_day(self, wall: datetime) -> bool:
        _, _, days, months, week, _ = self.sets
        right = [wall.day in days, wall.isoweekday() in week or wall.isoweekday() % 7 in week]
        return wall.month in months and (all(right) if self.both else any(right))

    def fires(self, moment: Moment) -> bool:
        if self.real:
            return self.matches(moment.shown)
        return any(self.matches(wall) for wall in moment.meant)

    def next(self, after: datetime, timezone: str) -> datetime:
        """Return the first minute that fires, having tried each on the days that match."""
        zone = ZoneInfo(timezone)
        at = after.replace(second=0, microsecond=0) + MINUTE
        while True:
            if not any(self.matches_day(at.astimezone(zone) + n * DAY) for n in (-1, 0, 1)):
                at += 60 * MINUTE
            elif self.fires(Moment(at, zone)):
                return at
            else:
                at += MINUTE


class Moment:
    """
    A moment in a time zone.

    `shown` is what the clocks on the wall show.
    `meant` are the times for which a fixed job runs at this moment: for a time that is left out or
    shown twice, fold=0 makes datetime take the offset from before the change.
    """

    def __init__(self, at: datetime, zone: ZoneInfo) -> None:
        self.at = at
        self.shown = at.astimezone(zone).replace(tzinfo=None)
        offsets = {(at + days * DAY).astimezone(zone).utcoffset() for days in (-1.25, 0, 1.25)}
        walls = [at.replace(tzinfo=None) + offset for offset in offsets if offset is not None]
        self.meant = [wall for wall in walls if wall.replace(tzinfo=zone).astimezone(UTC) == at]


def changes(timezone: str, year: int) -> list[datetime]:
    """Return when the clocks of a time zone are changed in a year."""
    zone = ZoneInfo(timezone)
    hours = [datetime(year, 1, 1, tzinfo=UTC) + hour * 60 * MINUTE for hour in range(8760)]
    offsets = [hour.astimezone(zone).utcoffset() for hour in hours]
    return [hour for i, hour in enumerate(hours) if i and offsets[i] != offsets[i - 1]]


def random_field(rng: random.Random, low: int, high: int, names: list[str], stars: float) -> str:
    def value(number: int) -> str:
        if names and number - low < len(names) and rng.random() < 0.3:
            return rng.choice([str.upper, str.lower, str.title])(names[number - low])
        return str(number)

    def part() -> str:
        first, last = sorted(rng.randint(low, high) for _ in range(2))
        step = rng.randint(1, max(2, (high - low) // 2))
        kind = rng.randrange(5)
        if kind == 0 and first < last:
            return f"{value(first)}-{last}"
        if kind == 1 and first < last:
            return f"{first}-{last}/{step}"
        if kind == 2:
            return f"{first}/{step}"
        return value(first)

    if rng.random() < stars:
        return "*" if rng.random() < 0.6 else f"*/{rng.randint(1, max(2, (high - low) // 2))}"
    return ",".join(part() for _ in range(rng.choice([1, 1, 1, 2, 3])))


def random_expression(rng: random.Random, stars: float = 0.45, seconds: bool = False) -> str:
    names = {"month": MONTHS, "day of week": DAYS}
    fields = [random_field(rng, low, high, names.get(name, []), stars) for name, (low, high) in RANGES.items()]
    return " ".join(fields if seconds else fields[:5])


ZONES = {
    "America/New_York": 2026,
    "America/St_Johns": 2010,  # at one minute past midnight
    "America/Havana": 2025,  # at midnight, and back to it
    "America/Santiago": 2025,  # at midnight, and back into the day before
    "America/Nuuk": 2025,  # an hour before midnight
    "Africa/Cairo": 2024,
    "Africa/Casablanca": 2024,  # back for Ramadan
    "Antarctica/Troll": 2024,  # by two hours
    "Asia/Tehran": 2021,
    "Asia/Pyongyang": 2015,  # by half an hour, for good
    "Atlantic/Azores": 2025,
    "Australia/Lord_Howe": 2026,  # by half an hour
    "Europe/Berlin": 2026,
    "Europe/Dublin": 2026,  # winter is what is saved
    "Pacific/Apia": 2011,  # left out a day
    "Pacific/Chatham": 2025,  # at a quarter to three
}


@pytest.mark.parametrize(("timezone", "year"), ZONES.items())
def test_around_a_change_of_the_clocks_each_minute_is_right(db, timezone, year):
    rng = random.Random(timezone)
    zone = ZoneInfo(timezone)
    found_changes = changes(timezone, year)
    assert found_changes
    questions, expected = [], []
    for change in found_changes:
        moments = [Moment(change + n * MINUTE, zone) for n in range(-1440, 2160)]
        end = moments[-1].at
        # Mostly at the hours at which something happens, and on any day.
        hours = sorted({moment.shown.hour for moment in moments[1320:1560]})
        for n in range(16):
            minute, hour, *_ = random_expression(rng, stars=0.3).split()
            days = rng.choice(["* * *", "* * *", f"{change.astimezone(zone).day} * *", "*/2 * *"])
            if n % 3:
                hour = ",".join(str(h) for h in rng.choices(hours, k=2))
            expression = f"{minute} {hour} {days}"
            oracle = Oracle(expression)
            fired = [moment.at for moment in moments if oracle.fires(moment)]
            for _ in range(25):
                after = change + timedelta(seconds=rng.randint(-43200, 86400))
                questions.append((expression, after, timezone))
                expected.append((next((tick for tick in fired if tick > after), None), end))
    answers = all_next(db, questions)
    for question, tick, (right, end) in zip(questions, answers, expected, strict=True):
        # Not within the span that was tried: then not before its end.
        assert tick == right or (right is None and tick > end), question
    assert sum(right is not None for right, _ in expected) > len(expected) / 2


@pytest.mark.parametrize("timezone", ["UTC", NEW_YORK, LORD_HOWE])
def test_around_a_change_of_the_clocks_each_second_is_right(db, timezone):
    rng = random.Random(timezone)
    zone = ZoneInfo(timezone)
    questions, expected = [], []
    for change in changes(timezone, 2026) or [datetime(2026, 2, 28, 23, tzinfo=UTC)]:
        moments = [Moment(change + n * MINUTE / 60, zone) for n in range(-5400, 9000)]
        hours = sorted({moment.shown.hour for moment in moments})
        for _ in range(12):
            minute, _, _, _, _, second = random_expression(rng, seconds=True).split()
            hour = rng.choice(["*", "*/2", ",".join(str(h) for h in rng.choices(hours, k=2))])
            expression = f"{minute} {hour} * * * {second}"
            oracle = Oracle(expression)
            fired = [moment.at for moment in moments if oracle.fires(moment)]
            for _ in range(25):
                after = change + timedelta(seconds=rng.randint(-5400, 7200))
                if tick := next((tick for tick in fired if tick > after), None):
                    questions.append((expression, after, timezone))
                    expected.append(tick)
    assert len(questions) > 150
    for question, tick, right in zip(questions, all_next(db, questions), expected, strict=True):
        assert tick == right, question


# ---- beside cronsim


def cronsim_next(expression: str, after: datetime, timezone: str) -> datetime | None:
    zone = UTC if timezone == "UTC" else ZoneInfo(timezone)
    try:
        return next(CronSim(expression, after.astimezone(zone))).astimezone(UTC)
    except (StopIteration, CronSimError):
        # It refuses some of the expressions that never fire.
        return None


LATER = "a time that is left out runs as much later as the clocks are put forward"
HALF = "cronsim goes on by whole hours, and so past the first half of an hour that day"
DIFFERENCES = {
    ("8/14,23,12-28 8-16,2 6-7,9/5,15/5 * 3/3", BERLIN, "2020-03-28T21:11:11"): LATER,
    ("*/4 2 * 8/4,4 sat,0", LORD_HOWE, "2018-03-31T07:33:55"): HALF,
    ("* 2-6/1 21/5,10-29/12 4-9,4-8/4 0", LORD_HOWE, "2018-10-11T01:46:38"): HALF,
    ("*/1 7/9 */2 4 0/2", LORD_HOWE, "2015-11-07T15:01:18"): HALF,
    ("*/1 5/2 2-11,2 1,4/3,11 */2", LORD_HOWE, "2023-02-28T16:06:14"): HALF,
    ("*/15 4-11/7 * */3 0-3/2", LORD_HOWE, "2017-02-08T19:53:31"): HALF,
    ("* 12/7,9/6,5-17 */5 10 4-7/2,0,TUE", LORD_HOWE, "2023-02-12T14:20:13"): HALF,
    ("*/13 2,18-23 4 APR-9 0", LORD_HOWE, "2015-10-21T06:56:50"): HALF,
    ("* 4 */10 APR *", LORD_HOWE, "2017-10-27T20:53:27"): HALF,
}
SAMPLES = {"UTC": 3000, NEW_YORK: 1500, BERLIN: 1500, LORD_HOWE: 1500}


@pytest.mark.parametrize(("timezone", "count"), SAMPLES.items())
def test_random_expressions_fire_as_with_cronsim(db, timezone, count):
    rng = random.Random(timezone)
    start = datetime(2015, 1, 1, tzinfo=UTC)
    seconds = 11 * 365 * 86400
    questions = [
        (random_expression(rng), start + timedelta(seconds=rng.randrange(seconds)), timezone) for _ in range(count)
    ]
    different = set()
    for (expression, after, _), tick in zip(questions, all_next(db, questions), strict=True):
        theirs = cronsim_next(expression, after, timezone)
        if tick != theirs:
            different.add((expression, timezone, after.replace(tzinfo=None).isoformat()))
            assert tick == Oracle(expression).next(after, timezone) != theirs
    assert different == {difference for difference in DIFFERENCES if difference[1] == timezone}


@pytest.mark.scenario(69)
def test_random_expressions_with_seconds_fire_as_with_cronsim(db):
    rng = random.Random("seconds")
    start = datetime(2015, 1, 1, tzinfo=UTC)
    questions = [
        (random_expression(rng, seconds=True), start + timedelta(seconds=rng.randrange(11 * 365 * 86400)), "UTC")
        for _ in range(500)
    ]
    for (expression, after, _), tick in zip(questions, all_next(db, questions), strict=True):
        *fields, second = expression.split()
        # Theirs is the first field.
        assert tick == cronsim_next(" ".join([second, *fields]), after, "UTC"), (expression, after)


@pytest.mark.parametrize(
    ("expression", "theirs"),
    [
        ("0 0 * * *", None),
        ("0 0 13 * *", None),
        ("0 0 13 * 5", None),
        ("0 0 */2 * *", None),
        ("0 0 1-31 * 0-7", None),
        ("0 0 1-31 * 1", None),
        ("0 0 1 * mon-sun", None),
        ("@daily", None),
        ("0 0 */2 * 1", "0 0 1-31/2 * 1"),
        (" 0  0 1 * */2 ", "0 0 1 * 0-7/2"),
        ("0 0 */2 * */2", "0 0 1-31/2 * 0-7/2"),
        ("0 0 */2 * 1 30", "0 0 1-31/2 * 1 30"),
        ("0 0 */1 * 1", "0 0 1-31/1 * 1"),
        ("0 0 5,* * 1", "0 0 * * 1"),
        ("0 0 1-31 * 1,*/2", "0 0 * * 1,*/2"),
        ("0 0 1 * 5,*", "0 0 1 * *"),
    ],
)
def test_it_knows_where_croniter_reads_an_expression_differently(db, expression, theirs):
    assert db.one("select procrastinate._cron_elsewhere(%s)", expression) == theirs
