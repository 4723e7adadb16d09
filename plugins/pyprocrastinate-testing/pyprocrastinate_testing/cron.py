"""
When a cron expression fires: 50_cron.sql.

Near a change of the clocks, both the times before and those after it are worked out from the two offsets.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import zoneinfo
from datetime import UTC, date, datetime, time, timedelta
from typing import NoReturn

from pyprocrastinate_testing.functions import function
from pyprocrastinate_testing.tables import Tables
from pyprocrastinate_testing.values import refuse

_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_ITEM = re.compile(r"(?:[*]|([0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?)(?:/([0-9]{1,4}))?", re.ASCII)
_OLDEST, _NEWEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
# 29 February falls on the same day of the week at least once in 40 years.
_YEARS = 41


@dataclasses.dataclass(frozen=True, slots=True)
class Cron:
    """
    The values of each field.

    `both`: whether both day fields must match, or either.
    `real`: whether it runs by the clock on the wall as it shows, or once for each time that it should show.
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    both: bool
    real: bool

    def match(self, at: datetime, before: datetime) -> datetime | None:
        """Return the first time in [at, before) that is asked for, on clocks that nobody changes."""
        day = self._day(at.date(), before.date())
        found = self._time(at.time() if day == at.date() else time())
        if day and not found:
            day, found = self._day(day + timedelta(days=1), before.date()), self._time(time())
        moment = datetime.combine(day, found) if day and found else None
        return moment if moment and moment < before else None

    def _day(self, day: date, last: date) -> date | None:
        while day <= last:
            if day.month not in self.months:
                day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
                continue
            matches = (day.day in self.days, day.isoweekday() % 7 in self.weekdays)
            if all(matches) if self.both else any(matches):
                return day
            day += timedelta(days=1)
        return None

    def _time(self, at: time) -> time | None:
        for hour in self.hours:
            for minute in self.minutes:
                if (hour, minute) >= (at.hour, at.minute):
                    for second in self.seconds:
                        if (hour, minute, second) >= (at.hour, at.minute, at.second):
                            return time(hour, minute, second)
        return None


@functools.lru_cache(maxsize=256)
def parse(expression: str) -> Cron:
    """Read an expression; JQ020 for a bad one."""
    text = expression.lower().strip(" \t\r\n")
    text = _ALIASES.get(text, text)
    if len(text) > 1000:
        bad(f"It has {len(text)} characters, the limit is 1000.")
    fields = re.split(r"[ \t\r\n]+", text) if text else []
    if len(fields) not in (5, 6):
        bad(f'"{text[:40]}" has {len(fields)} of the 5 or 6 fields.')
    minute, hour, day, month, weekday, second = [*fields, "0"][:6]
    weekdays = _field("day of week", weekday, 0, 7, _DAYS)
    starred = [field.startswith("*") for field in (minute, hour, second)]
    return Cron(
        tuple(sorted(_field("second", second, 0, 59))),
        tuple(sorted(_field("minute", minute, 0, 59))),
        tuple(sorted(_field("hour", hour, 0, 23))),
        _field("day of month", day, 1, 31),
        _field("month", month, 1, 12, _MONTHS),
        frozenset(value % 7 for value in weekdays),
        both=day.startswith("*") or weekday.startswith("*"),
        real=any(starred),
    )


def _field(name: str, value: str, low: int, high: int, words: list[str] | None = None) -> frozenset[int]:
    found: set[int] = set()
    for part in value.split(","):
        item = _ITEM.fullmatch(part)
        if not item:
            bad(f'{name}: "{part[:40]}" cannot be read.')
        first = low if item[1] is None else _value(item[1], low, words)
        last = _value(item[2], low, words) if item[2] else high if item[1] is None or item[3] else first
        if first is None or last is None:
            bad(f'{name}: "{part[:40]}" cannot be read.')
        if high == 7 and last == 0 and first > 0:
            last = 7  # Sunday ends the week as well as it begins it
        if not (low <= first <= high and low <= last <= high):
            bad(f'{name}: "{part}" is not within {low} to {high}.')
        if first > last:
            bad(f'{name}: "{part}" ends before it begins.')
        step = int(item[3] or 1)
        if step == 0:
            bad(f'{name}: the step of "{part}" is zero.')
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _value(item: str, low: int, words: list[str] | None) -> int | None:
    if item.isdigit():
        return int(item)
    return words.index(item) + low if words and item in words else None


def bad(detail: str) -> NoReturn:
    """Raise JQ020."""
    refuse(
        "JQ020",
        "bad cron expression",
        detail=detail,
        hint="Write minute, hour, day of month, month, day of week and, if wanted, second, as in "
        '"*/5 8-18 * * mon-fri"; or @hourly, @daily, @weekly, @monthly, @yearly.',
    )


@functools.cache
def _zones() -> dict[str, str]:
    return {name.lower(): name for name in zoneinfo.available_timezones()}


def zone(timezone: str) -> zoneinfo.ZoneInfo:
    """Return a time zone; JQ021 for one that is not known."""
    try:
        return zoneinfo.ZoneInfo(_zones()[timezone.lower()])
    except KeyError:
        refuse(
            "JQ021",
            "unknown time zone",
            detail=f'It is "{timezone[:100]}".',
            hint="Use a name of the view pg_timezone_names, such as UTC or Europe/Berlin.",
        )


@function
def cron_next(tables: Tables, expression: str, after: datetime, timezone: str = "UTC") -> datetime | None:
    """Return the first time after the given one at which the expression fires, or None when it never does."""
    return next_after(expression, after, timezone)


def next_after(expression: str, after: datetime, timezone: str) -> datetime | None:
    cron, where = parse(expression), zone(timezone)
    if not _OLDEST <= after <= _NEWEST:
        refuse(
            "JQ013",
            "time is out of range",
            detail="It is infinite, before the year 1900 or after 9000.",
            hint="Pass a time that a schedule can follow.",
        )
    # 28 February is as good an end as the 29th.
    end = after.replace(tzinfo=None, year=after.year + _YEARS, day=min(after.day, 28))
    wall = after.astimezone(where).replace(tzinfo=None, microsecond=0) + _SECOND
    while True:
        day = wall.date()
        if _is_steady(day, where):
            match = cron.match(wall, end)
            if match is None or match.date() == day:
                return match and _utc(match, where)
            wall = datetime.combine(match.date(), time())
        elif found := _near_change(cron, after, day, where):
            return found
        else:
            wall = datetime.combine(day, time()) + timedelta(days=2)


def last_until(expression: str, after: datetime, upto: datetime, timezone: str) -> datetime | None:
    """Return the last time in (after, upto] at which the expression fires."""
    tick = next_after(expression, after, timezone)
    if tick is None or tick > upto:
        return None
    low, high = 0, -((after - upto) // _SECOND)
    while high - low > 1:
        middle = (low + high) // 2
        found = next_after(expression, after + middle * _SECOND, timezone)
        if found is not None and found <= upto:
            tick, low = found, middle
        else:
            high = middle
    return tick


def _utc(wall: datetime, where: zoneinfo.ZoneInfo) -> datetime:
    return wall.replace(tzinfo=where).astimezone(UTC)


def _midnight(day: date, days: int, where: zoneinfo.ZoneInfo) -> datetime:
    return _utc(datetime.combine(day + timedelta(days=days), time()), where)


def _is_steady(day: date, where: zoneinfo.ZoneInfo) -> bool:
    """Tell that nobody changes the clocks from two days before a day begins to the end of the day after it."""
    return _midnight(day, 2, where) - _midnight(day, -2, where) == timedelta(days=4)


def _offset(at: datetime, where: zoneinfo.ZoneInfo) -> timedelta:
    return at.astimezone(where).utcoffset() or timedelta()


def _near_change(cron: Cron, after: datetime, day: date, where: zoneinfo.ZoneInfo) -> datetime | None:
    """Return the first time from two days before a day's beginning to the end of the next day, minding the change."""
    begin, upto = _midnight(day, -2, where), _midnight(day, 2, where)
    before, later = _offset(begin, where), _offset(upto, where)
    change = _change(begin, upto, where)
    missing = doubled = timedelta()
    if not cron.real:
        missing, doubled = max(later - before, missing), max(before - later, doubled)
    begin = max(begin, after.replace(microsecond=0) + _SECOND)
    early = cron.match(_wall(begin, before), _wall(change, before) + missing)
    late = cron.match(_wall(max(begin, change + doubled), later), _wall(upto, later))
    found = _first(early and early - before, late and late - later)
    return found.replace(tzinfo=UTC) if found and found < upto.replace(tzinfo=None) else None


def _first(*times: datetime | None) -> datetime | None:
    return min((time for time in times if time is not None), default=None)


def _wall(at: datetime, offset: timedelta) -> datetime:
    return at.replace(tzinfo=None) + offset


def _change(low: datetime, high: datetime, where: zoneinfo.ZoneInfo) -> datetime:
    """Return the time in (low, high] at which the clocks are changed."""
    before = _offset(low, where)
    left, right = 0, int((high - low) / _SECOND)
    while right - left > 1:
        middle = (left + right) // 2
        if _offset(low + middle * _SECOND, where) == before:
            left = middle
        else:
            right = middle
    return low + right * _SECOND
