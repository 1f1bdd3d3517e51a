"""Renders chat templates. Runs as a process of its own, which a template can neither outlive nor fill memory from.

A chat template is a program that came with a model's files. Jinja's sandbox keeps it from files and from Python's
internals, but not from loops without end or strings of gigabytes; the limits of this process do. It imports nothing
of this project, reads a job as JSON from its standard input, and writes {"texts": [...]} or {"error": "..."}.
"""

import datetime
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import ext, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_CHARACTERS = 2_000_000  # of one rendered conversation


class _Generation(ext.Extension):
    """`{% generation %}` marks what a model wrote, for training; here it is left out."""

    tags = {"generation"}  # noqa: RUF012, as the base class declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(job: Mapping[str, Any]) -> list[str]:
    """The text of each conversation of a job, which has the keys that `lm.data.chat` writes."""
    environment = _environment()
    template = _compiled(environment, job["template"], job["spellings"])
    common = job["variables"] | {"tools": None, "documents": None}
    common |= {"add_generation_prompt": job["add_generation_prompt"]}
    return [_text(template, common | {"messages": messages}) for messages in job["conversations"]]


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda format_: datetime.datetime.now().strftime(format_)
    return environment


def _compiled(environment: ImmutableSandboxedEnvironment, source: str, spellings: Mapping[str, str]) -> jinja2.Template:
    """The template, with private characters for the special tokens that are written in it."""
    tree = environment.parse(source)
    if spellings:
        names = re.compile("|".join(re.escape(name) for name in sorted(spellings, key=len, reverse=True)))
        for data in tree.find_all(nodes.TemplateData):
            data.data = names.sub(lambda found: spellings[found[0]], data.data)
        for constant in tree.find_all(nodes.Const):
            if isinstance(constant.value, str):
                constant.value = names.sub(lambda found: spellings[found[0]], constant.value)
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def _text(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    parts, length = [], 0
    for part in template.generate(variables):
        parts.append(part)
        length += len(part)
        if length > MOST_CHARACTERS:
            raise ValueError(f"it writes more than {MOST_CHARACTERS:,} characters")
    return "".join(parts)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes characters of HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _limit(seconds: int, memory: int) -> None:
    """Limits the time and the memory of this process, and keeps it from writing files."""
    try:
        import resource
    except ImportError:  # not on Windows, where the caller's time limit remains
        return
    for name, most in (("RLIMIT_CPU", seconds), ("RLIMIT_AS", memory), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    """Reads a job, renders it and writes the result."""
    job = json.load(sys.stdin)
    try:
        _limit(job["seconds"], job["memory"])
        result: dict[str, Any] = {"texts": render(job)}
    except MemoryError:
        result = {"error": "it needs too much memory"}
    except RecursionError:
        result = {"error": "it calls itself without end"}
    except jinja2.TemplateSyntaxError as error:
        result = {"error": f"line {error.lineno}: {error.message}"}
    except Exception as error:  # whatever a template can provoke
        result = {"error": str(error) or type(error).__name__}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
