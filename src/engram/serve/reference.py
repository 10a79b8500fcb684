"""The page for programmers: what can be asked, generated from the schema, without any script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from engram.results.markup import paragraph, section, table

__all__ = ["reference"]

Schema = Mapping[str, Any]

JSON = "application/json"

INTRODUCTION = (
    "<p>A request that is refused is answered with a status of 400 or more and a "
    '<a href="#Problem">Problem</a>, which says what happened and the way out. Where the server '
    "has a token, requests carry it as <code>Authorization: Bearer TOKEN</code>. The same for "
    'programs: <a href="/api/openapi.json">openapi.json</a>.</p>'
)


def reference(schema: Schema) -> str:
    """The whole document.

    Args:
        schema: as OpenAPI has it.
    """
    title = f"{schema['info']['title']}: REST"
    body = "\n".join(
        [
            f"<header><h1>{escape(title)}</h1><nav><a href='/'>To the page</a></nav></header>",
            "<main>",
            section("Overview", paragraph(schema["info"]["description"]), INTRODUCTION),
            *_operations(schema),
            section("Schemas", *map(_described, schema["components"]["schemas"].values())),
            "</main>",
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        '<link rel="icon" href="/page/icon.svg" type="image/svg+xml">\n'
        '<link rel="stylesheet" href="/page/page.css">\n</head>\n'
        f'<body class="reference">\n{body}\n</body>\n</html>\n'
    )


def _operations(schema: Schema) -> Iterator[str]:
    """A section for each tag."""
    by_tag: dict[str, list[str]] = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append(_operation(path, method, operation))
    for tag, operations in by_tag.items():
        yield section(tag.capitalize(), *operations)


def _operation(path: str, method: str, operation: Schema) -> str:
    takes = [*map(_parameter, operation.get("parameters", ())), *_body(operation)]
    answers = [
        f"{code}: {_content(answer)}"
        for code, answer in operation["responses"].items()
        if code.startswith("2")
    ]
    rows = [*(("Takes", text) for text in takes), *(("Answers", text) for text in answers)]
    items = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    return (
        f'<article class="operation"><h3><code>{method.upper()} {escape(path)}</code></h3>'
        f"{_text(operation['description'])}<dl>{items}</dl></article>"
    )


def _parameter(parameter: Schema) -> str:
    schema = parameter["schema"]
    default = f", {schema['default']} if left out" if "default" in schema else ""
    place = f"in the {parameter['in']}"
    return f"<code>{escape(parameter['name'])}</code> {place}: {_kind(schema)}{default}"


def _body(operation: Schema) -> Iterator[str]:
    if body := operation.get("requestBody"):
        yield f"as body: {_content(body)}"


def _content(message: Schema) -> str:
    """What a request or an answer holds."""
    kinds = [
        _kind(part["schema"]) + ("" if media == JSON else f" ({escape(media)})")
        for media, part in message.get("content", {}).items()
    ]
    return " or ".join(kinds) or "nothing"


def _kind(schema: Schema) -> str:
    """The type of a value, in words."""
    match schema:
        case {"$ref": place}:
            return _link(place.rpartition("/")[2])
        case {"anyOf": kinds}:
            return " or ".join(map(_kind, kinds))
        case {"enum": values}:
            return " | ".join(f"<code>{escape(str(value))}</code>" for value in values)
        case {"type": "array", "items": items}:
            return f"list of {_kind(items)}"
        case {"type": "object", "additionalProperties": values}:
            return f"object of {_kind(values)}"
        case {"type": "string", "format": "binary"}:
            return "the bytes of a file"
        case {"minimum": least, "maximum": most}:
            return f"{escape(schema['type'])} from {least} to {most}"
    return escape(schema["type"])


def _link(name: str) -> str:
    return f'<a href="#{escape(name)}">{escape(name)}</a>'


def _described(schema: Schema) -> str:
    """A schema with its fields."""
    rows = [
        f"<tr><td><code>{escape(name)}</code></td><td>{_kind(field)}</td></tr>"
        for name, field in schema["properties"].items()
    ]
    name = escape(schema["title"])
    return (
        f'<article class="operation"><h3 id="{name}">{name}</h3>{_text(schema["description"])}'
        f"{table(['Field', 'Type'], rows, texts=(0, 1))}</article>"
    )


def _text(description: str) -> str:
    """A paragraph in which what stands between ` is code."""
    marked = re.sub("`([^`]+)`", r"<code>\1</code>", escape(description))
    return f"<p>{marked}</p>"
