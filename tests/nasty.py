"""Names that somebody chose to do harm, or with no idea that they might."""

from __future__ import annotations

# Such as any task, queue, lock, schedule or worker may have: they come out as they went in.
NAMES = {
    "quotes": """'"'';--""",
    "statement": "x'); drop table procrastinate.job; --",
    "dollar": "$$; select pg_sleep(9); $$ $1 $body$",
    "percent": "%s %(name)s %d %% %",
    "braces": "{} {0} {name!r} {{",
    "backslash": "\\ \\' \\n \\x41 \\u0041 \\",
    "json": '"}, {"task": "other"}]',
    "array": "{a,b,NULL}",
    "newline": "a\nERROR:root:forged",
    "carriage return": "a\r\nb\rc",
    "tab and blanks": " \t leading and trailing \t ",
    "escapes": "\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b[2J",
    "controls": "\x01\x02\x08\x0b\x0c\x1f\x7f\x80\x9b31m",
    "right to left": "safe\u202egnp.exe\u2066\u2069\u200f",
    "invisible": "a\u200bb\ufeffc\u00add\u2028e\u2029f",
    "combining": "e\u0301\u0323" * 10 + "\u0345",
    "wide": "".join(chr(0x1F600 + n) for n in range(60)),
    "longest": "".join(chr(0x20000 + n * 7919 % 0xA000) for n in range(128)),
    "not characters": "\ufffe\uffff\U0010ffff\ue000",
    "path": "../../etc/passwd",
    "module": "os.system",
    "dunder": "__import__('os').system",
    "markup": "<script>alert(1)</script>&lt;",
    "template": "{{ 7 * 7 }} ${7*7} <%= 7 %>",
    "channel": "procrastinate_v1",
    "option": "--help",
    "null": "null",
    "number": "1e400",
    "blank": " ",
    "dot": ".",
}
# What PostgreSQL cannot store, and what is too long or too short.
NUL = "a\0b"
SURROGATE = "a\ud83eb"
TOO_LONG = "x" * 129
EMPTY = ""
