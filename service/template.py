"""A chat template, compiled as transformers does, in a sandbox. Knows Jinja; knows no tokens."""

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from service.bundle import TEMPLATE
from service.errors import BundleError


class _Generation(Extension):
    """transformers' `{% generation %}` block, which marks what is learnt from, is its body."""

    tags = {"generation"}  # noqa: RUF012, as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(template: str, date: str) -> jinja2.Template:
    """With `date`, in ISO form, frozen for templates that ask for it. Raises BundleError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = tojson
    try:
        environment.globals["strftime_now"] = datetime.fromisoformat(date).strftime
        compiled = environment.from_string(template)
    except (jinja2.TemplateError, ValueError) as error:
        raise BundleError(f"{TEMPLATE}: {error}", field=TEMPLATE) from error
    compiled.globals = dict(compiled.globals)  # each rendering copies it: half the time of a chain
    return compiled
