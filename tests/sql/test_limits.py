"""What is refused at the door, and that what slips past it hurts nobody but itself."""

from __future__ import annotations

import json

import psycopg
import pytest

SECRET = "s3cr3t"


def nested(levels, kind="list", **more):
    """Return args of so many levels."""
    value = SECRET
    for _ in range(levels - 1):
        value = [value] if kind == "list" else {"k": value}
    return {"a": value} | more


def rows(db):
    return db.one("select count(*) from procrastinate.jobs")


@pytest.fixture(params=["defer", "defer_many"])
def defer(request, db):
    """Return a function that defers a job, by either door."""
    if request.param == "defer":
        return db.defer
    return lambda task="task", **options: db.defer_many({"task": task} | options)[0].id


# Names


@pytest.mark.parametrize("character", ["x", "ü", "🦀", " ", "\n", "'", '"', "\\", "%", "\u202e"])
@pytest.mark.parametrize(("name", "longest"), [("task", 128), ("queue", 128), ("lock", 512), ("queueing_lock", 512)])
def test_a_name_may_have_any_characters_up_to_its_length(db, name, longest, character):
    for length in (1, longest - 1, longest):
        job = db.job(db.defer(**{name: character * length}))
        assert getattr(job, name) == character * length


@pytest.mark.parametrize(("name", "longest"), [("task", 128), ("queue", 128), ("lock", 512), ("queueing_lock", 512)])
def test_an_empty_or_longer_name_is_refused(db, defer, name, longest):
    what = name.replace("_", " ")
    hint = f"1 to {longest} characters"
    with db.refused("JQ014", f"{what} name is empty", detail="0 characters", hint=hint):
        defer(**{name: ""}, args={"a": SECRET})
    for character in ("x", "🦀"):
        too_long = character * (longest + 1)
        detail = f"{longest + 1} characters"
        with db.refused("JQ014", f"{what} name is too long", detail=detail, hint=hint):
            defer(**{name: too_long}, args={"a": SECRET})
    assert rows(db) == 0


def test_a_job_needs_a_task(db, defer):
    with db.refused("JQ014", "task name is empty"):
        defer(task=None)


@pytest.mark.scenario("R11")
@pytest.mark.parametrize("length", [40, 41, 63, 64, 127, 128])
def test_a_queue_of_any_length_works_all_the_way(db, length, listener):
    queue = "🦀" * (length // 4) + "x" * (length % 4)
    worker = db.worker(queues=[queue])
    worker.idle()
    job_id = db.defer(queue=queue)
    assert len(listener.heard()) == 1
    assert worker.ids() == [job_id]


def test_the_longest_names_all_at_once_fit_every_index(db, worker):
    # all different, so that they do not compress and take 4 bytes each
    wide = "".join(chr(0x20000 + n * 7919 % 0xA000) for n in range(512))
    job_id = db.defer(wide[:128], queue=wide[:128], lock=wide, queueing_lock=wide[::-1])
    db.defer(wide[:128], queue=wide[:128], lock=wide, queueing_lock=wide, priority=-1)
    job = worker.take()
    assert (job.id, job.lock, job.queueing_lock) == (job_id, wide, wide[::-1])
    assert worker.fetch() == []
    worker.fail(job)
    assert db.job(job_id).lock == wide
    assert worker.take().lock == wide


@pytest.mark.parametrize(
    ("what", "bad"),
    [
        ("worker", {"name": ""}),
        ("worker", {"name": "x" * 513}),
        ("queue", {"queues": [""]}),
        ("queue", {"queues": ["q", "x" * 129]}),
        ("queue", {"queues": [None]}),
        ("task", {"tasks": {"": {}}}),
        ("task", {"tasks": {"x" * 129: {}}}),
        ("queue", {"tasks": {"task": {"queue": ""}}}),
        ("lock", {"tasks": {"task": {"lock": "x" * 513}}}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_worker_registers_no_name_that_no_job_could_have(db, what, bad):
    with db.refused("JQ014"):
        db.worker(**{"name": "worker"} | bad)
    assert db.rows("select * from procrastinate.workers") == []
    assert db.rows("select * from procrastinate.tasks") == []


@pytest.mark.parametrize("tasks", [None, [], "task", {"task": 3}, {"task": None}])
def test_the_tasks_of_a_worker_are_an_object_of_objects(db, tasks):
    with db.refused("22023", "tasks must be a JSON object of objects"):
        db.worker(tasks=tasks)


@pytest.mark.parametrize("protocol", [0, 2, -1, None])
def test_a_worker_of_another_protocol_is_refused(db, protocol):
    with db.refused("JQ005", detail="It speaks 1 to 1"):
        db.worker(protocol=protocol)
    assert db.rows("select * from procrastinate.workers") == []


# Numbers and times


@pytest.mark.parametrize("priority", [-(2**31) + 1, 2**31 - 1])
def test_a_priority_may_be_any_integer_that_has_a_negative(db, defer, priority):
    assert db.job(defer(priority=priority)).priority == priority


def test_the_one_priority_without_a_negative_is_refused(db, defer):
    with db.refused("JQ015", "priority is out of range", hint="-2147483647 to 2147483647"):
        defer(priority=-(2**31), args={"a": SECRET})


@pytest.mark.parametrize("time", ["2000-01-01 00:00Z", "9000-01-01 00:00Z", "1999-12-31 20:00-04"])
def test_a_time_may_be_any_that_clients_can_read(db, defer, time):
    assert db.job(defer(schedule_at=time)).scheduled_at == db.one("select %s::timestamptz", time)


@pytest.mark.parametrize(
    ("time", "detail"),
    [
        ("infinity", "infinite"),
        ("-infinity", "infinite"),
        ("1999-12-31 23:59:59Z", "before the year 2000"),
        ("9000-01-01 00:00:01Z", "after 9000"),
        ("294276-12-31 23:59Z", "after 9000"),
        ("4713-01-02 00:00Z BC", "before the year 2000"),
    ],
)
def test_a_time_that_clients_cannot_read_is_refused(db, defer, time, detail):
    with db.refused("JQ013", "time is out of range", detail=detail, hint="as soon as possible"):
        defer(schedule_at=time, args={"a": SECRET})
    assert rows(db) == 0


@pytest.mark.parametrize(
    "interval", ["7000 years", "-100 years", "178000000 years", "-178000000 years", "300000000000 seconds"]
)
def test_an_interval_that_leads_there_is_refused_too(db, defer, interval):
    with db.refused("JQ013", "time is out of range"):
        defer(schedule_in=interval, args={"a": SECRET})
    assert rows(db) == 0


@pytest.mark.parametrize("interval", ["infinity", "-infinity"])
def test_an_infinite_interval_is_refused(db, defer, interval):
    if db.conn.info.server_version < 170000:
        pytest.skip("before PostgreSQL 17 there is no such interval")
    with db.refused("JQ013"):
        defer(schedule_in=interval)


# Args and headers


@pytest.mark.parametrize(
    ("value", "kind"), [([SECRET], "array"), (SECRET, "string"), (5, "number"), (True, "boolean"), ([], "array")]
)
@pytest.mark.parametrize("what", ["args", "headers"])
def test_what_is_no_object_is_refused(db, defer, what, value, kind):
    detail = f"of type {kind}"
    with db.refused("JQ010", f"{what} must be a JSON object", detail=detail, hint="named values"):
        defer(**{what: value})
    assert rows(db) == 0


@pytest.mark.parametrize("what", ["args", "headers"])
@pytest.mark.parametrize("kind", ["list", "dict"])
@pytest.mark.parametrize("padding", [0, 2000])
def test_sixty_four_levels_and_no_more(db, defer, what, kind, padding):
    more = {"padding": "x" * padding}
    job_id = defer(**{what: nested(64, kind, **more)})
    assert getattr(db.job(job_id), what) == nested(64, kind, **more)
    with db.refused("JQ011", f"{what} are nested too deep", detail="64", hint="Flatten"):
        defer(**{what: nested(65, kind, **more)})
    with db.refused("JQ011", f"{what} are nested too deep"):
        defer(**{what: nested(900, kind, **more)})
    assert rows(db) == 1


def test_levels_are_counted_everywhere(db, defer):
    args = {"a": 1, "z": {"b": [1, {"c": 2}, nested(64)["a"]]}}
    with db.refused("JQ011"):
        defer(args=args)


@pytest.mark.parametrize("what", ["args", "headers"])
def test_a_mebibyte_and_no_more(db, defer, what):
    empty = len(json.dumps({"a": ""}))
    job_id = defer(**{what: {"a": "x" * (2**20 - empty)}})
    assert len(getattr(db.job(job_id), what)["a"]) == 2**20 - empty
    detail = f"{2**20 + 1} bytes as JSON text, the limit is {2**20}"
    with db.refused("JQ012", f"{what} are too large", detail=detail, hint="max_args_bytes"):
        defer(**{what: {"a": SECRET + "x" * (2**20 - empty - len(SECRET) + 1)}})
    assert rows(db) == 1


@pytest.mark.parametrize(("limit", "length"), [(2, 0), (20, 11), (500, 491), (2000, 1991)])
def test_the_limit_is_a_setting_and_counts_bytes_of_text(db, defer, limit, length):
    db.set("max_args_bytes", limit)
    defer(args={})
    if limit > 2:
        defer(args={"a": "x" * length})
        defer(args={"a": "ü" * (length // 2)})
    for too_large in ("x" * (length + 1), "ü" * (length // 2 + 1)):
        with db.refused("JQ012", detail=f"the limit is {limit}"):
            defer(args={"a": too_large})


def test_what_is_stored_compressed_is_measured_in_full(db):
    """A column of the user's own may hold args in far fewer bytes than they have."""
    db.conn.execute("create table public.payload (kind text, args jsonb)")
    try:
        for kind, args in [
            ("large", {"a": "x" * 5000}),
            ("deep", nested(65, padding="x" * 5000)),
            ("list", ["x" * 5000]),
        ]:
            db.conn.execute("insert into public.payload values (%s, %s)", [kind, json.dumps(args)])
        small = "pg_column_size(args) <= 512"
        assert db.one(f"select bool_and({small}) from public.payload"), "else this tests nothing"
        query = "select procrastinate.defer('task', args) from public.payload where kind = %s"
        with db.refused("JQ011"):
            db.one(query, "deep")
        with db.refused("JQ010"):
            db.one(query, "list")
        db.set("max_args_bytes", 4000)
        with db.refused("JQ012"):
            db.one(query, "large")
    finally:
        db.conn.execute("drop table public.payload")
    assert rows(db) == 0


UNUSUAL = {
    "numbers": '{"big": %s, "small": 1e-400, "float": 0.1, "exact": 1.10, "zero": -0.0, "e": 1e2}' % ("9" * 5000),
    "huge number": '{"n": 1e400}',
    "text": '{"": "", "\\u0001\\u001f": "\\ud83e\\udd80\\u2028", "t": "\\\\\\"\\/\\b\\f\\n\\r\\t"}',
    "keys": '{"a b": 1, "A": 2, "a": 3, "__proto__": {}, "to\\"": null}',
    "duplicates": '{"a": 1, "a": 2}',
    "sql": """{"a": "'; drop table procrastinate.job; --", "b": "$$", "c": "%s %(a)s {}"}""",
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_whatever_json_can_say_comes_out_as_it_went_in(db, worker, kind):
    expected = db.one("select %s::jsonb::text", UNUSUAL[kind])
    db.one("select procrastinate.defer('task', %s::jsonb, headers => %s)", *[UNUSUAL[kind]] * 2)
    job = worker.take()
    assert (job.args, job.headers) == (expected, expected)
    worker.finish(job)
    stored = db.one("select args::text from procrastinate.jobs where id = %s", job.id)
    assert stored == expected


BAD_BY_HAND = [
    "scheduled_at = 'infinity'",
    "scheduled_at = '-infinity'",
    "deferred_at = 'infinity'",
    "deferred_at = '-infinity'",
    "rank = -2147483648",
]
POISON = {
    "deep": '{"a": ' * 5000 + "1" + "}" * 5000,
    "list": "[1, 2]",
    "string": '"text"',
    "null": "null",
    "digits": '{"n": %s}' % ("9" * 100_000),
    "large": '{"a": "%s"}' % ("x" * 3_000_000),
}


@pytest.mark.parametrize("kind", POISON)
def test_what_the_owner_inserts_past_the_door_reaches_the_worker_as_text(db, worker, kind):
    """So that it fails one job, when that is read, and no fetch."""
    before = db.defer()
    db.conn.execute("insert into procrastinate.job (task, args, headers) values ('task', %s, %s)", [POISON[kind]] * 2)
    after = db.defer()
    jobs = worker.fetch(3)
    assert [job.id for job in jobs] == [before, before + 1, after]
    assert isinstance(jobs[1].args, str)
    assert jobs[1].args == db.one("select %s::jsonb::text", POISON[kind])
    assert worker.fail(jobs[1]).verdict == "ok"


@pytest.mark.parametrize("bad", BAD_BY_HAND)
def test_not_even_the_owner_inserts_what_no_client_could_read(db, bad):
    column, value = bad.split(" = ")
    with db.refused("23514"):
        db.conn.execute(f"insert into procrastinate.job (task, {column}) values ('task', {value})")


@pytest.mark.parametrize(
    ("sqlstate", "text"),
    [
        ("22P05", '{"a": "s3cr3t \\u0000"}'),
        ("22P02", '{"a": "\\ud83e"}'),
        ("22P02", '{"a": NaN}'),
        ("22P02", '{"a": Infinity}'),
        ("22P02", '{"a": 1,}'),
        ("54001", "[" * 1_000_000),
    ],
    ids=lambda text: text[:20],
)
def test_what_the_parser_of_json_refuses_keeps_its_code(db, sqlstate, text):
    with pytest.raises(psycopg.Error) as raised:
        db.one("select procrastinate.defer('task', %s::jsonb)", text)
    assert raised.value.sqlstate == sqlstate
    assert rows(db) == 0
