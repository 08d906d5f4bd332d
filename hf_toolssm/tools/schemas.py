"""What a call's arguments may be, as JSON Schemas, and whether what a model wrote is that.

Faults are told in one short line, because the model reads them: what is wrong, where, and what the call takes. Nothing
is ever fetched: a `$ref` reaches only into its own schema. `nullable: true` allows null, as transformers means it.
A `pattern` is searched for a second at most; Python's own search would hold the whole process for as long as it takes.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import regex
from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from hf_toolssm.errors import InvalidArgumentsError, InvalidSchemaError

PATTERN_LIMIT = 1.0
"""Seconds in which a text must match a schema's pattern, or be no match."""

FAULTS_TOLD = 3
"""How many faults of one call the model reads of."""


def check_schemas(schemas: Any) -> Mapping[str, Mapping[str, Any]]:
    """What a tool says of its calls' arguments: by name `{"description": str, "parameters": JSON Schema}`.

    Raises:
        InvalidSchemaError: it is something else.
    """
    if not isinstance(schemas, Mapping) or not all(isinstance(name, str) for name in schemas):
        raise InvalidSchemaError(
            "a tool's schemas are a mapping from the names of its calls to their description and parameters, and not "
            f"{schemas!r:.200}"
        )
    for name, schema in schemas.items():
        if not isinstance(schema, Mapping) or {*schema} != {"description", "parameters"}:
            raise InvalidSchemaError(f"{name}: a schema is {{'description': ..., 'parameters': ...}}: {schema!r:.200}")
        if not isinstance(schema["description"], str):
            raise InvalidSchemaError(f"{name}: the description is a text, and not {schema['description']!r:.200}")
        make_validator(name, schema["parameters"])
    return schemas


def make_validator(name: str, parameters: Any) -> Validator:
    """What checks the arguments of a call.

    Args:
        name: of the call.
        parameters: the JSON Schema of an object.

    Raises:
        InvalidSchemaError: it is none.
    """
    if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
        raise InvalidSchemaError(
            f"{name}: its parameters are the JSON Schema of an object, as in {{'type': 'object', 'properties': "
            f"{{'city': {{'type': 'string'}}}}}}, and not {parameters!r:.200}"
        )
    try:
        return _validator(json.dumps(parameters, allow_nan=False))
    except SchemaError as error:
        raise InvalidSchemaError(f"{name}: {error.json_path} is no JSON Schema: {error.message:.200}") from error
    except Unresolvable as error:
        raise InvalidSchemaError(
            f"{name}: {error.ref!r:.200} leads nowhere: define it in $defs; nothing is fetched"
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSchemaError(f"{name}: its parameters are no JSON Schema: {error!s:.200}") from error


def read_arguments(name: str, parameters: Mapping[str, Any], written: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a call.

    Args:
        name: of the call.
        parameters: the JSON Schema that they follow.
        written: JSON, of which nothing stands for no arguments; or the arguments themselves.

    Raises:
        InvalidArgumentsError: they are no JSON, or one that programs read in different ways, or not by the schema.
    """
    arguments = _parsed(name, written) if isinstance(written, str) else written
    validator = make_validator(name, parameters)
    try:
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
        faults = [_told(fault) for fault in islice(validator.iter_errors(arguments), FAULTS_TOLD + 1)]
    except UnicodeEncodeError as error:
        raise InvalidArgumentsError(f"{name}: a text holds half of a character: leave it out") from error
    except TimeoutError as error:
        raise InvalidArgumentsError(f"{name}: a text takes too long to be matched with its pattern") from error
    except (TypeError, ValueError, ArithmeticError, RecursionError, Unresolvable) as error:
        raise InvalidArgumentsError(f"{name}: the arguments cannot be checked: {error!s:.200}") from error
    if faults:
        more = "; and more" if len(faults) > FAULTS_TOLD else ""
        wanted = _wanted(parameters)
        raise InvalidArgumentsError(f"{name}: {'; '.join(faults[:FAULTS_TOLD])}{more}. It takes {wanted}")
    return arguments


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text.strip() or "{}", object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError as error:
        raise InvalidArgumentsError(f"{name}: the arguments are nested too deeply") from error
    except ValueError as error:
        raise InvalidArgumentsError(
            f'{name}: the arguments are no JSON: {error!s:.120}; write one object, as in {{"key": "value"}}'
        ) from error


@lru_cache(maxsize=1_024)
def _validator(parameters: str) -> Validator:
    """By the schema's text, because every session asks for it and compiling takes milliseconds."""
    schema = json.loads(parameters)
    if not isinstance(schema.get("$schema", ""), str):
        raise ValueError("its $schema is no text")
    draft = validator_for(schema, default=Draft202012Validator)
    draft.check_schema(schema)
    resource = Resource.from_contents(schema, DRAFT202012)
    _check_references(resource, Registry().resolver_with_root(resource))
    return _with_nullable(draft)(schema, registry=Registry())


@lru_cache
def _with_nullable(draft: Any) -> Any:
    def unless_null(keyword: Callable[..., Any]) -> Callable[..., Any]:
        def check(validator: Validator, value: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
            if instance is not None or schema.get("nullable") is not True:
                yield from keyword(validator, value, instance, schema) or ()

        return check

    keywords = {**draft.VALIDATORS, "pattern": _pattern}
    return extend(draft, {name: unless_null(keyword) for name, keyword in keywords.items()})


def _pattern(validator: Validator, pattern: str, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    if isinstance(instance, str) and not regex.search(pattern, instance, timeout=PATTERN_LIMIT):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_references(resource: Resource[Any], resolver: Any) -> None:
    """Looks up every reference of a schema and of those in it; what stands in `default` or `const` is none."""
    schema = resource.contents
    for key in ("$ref", "$dynamicRef"):
        if isinstance(schema, dict) and isinstance(schema.get(key), str):
            resolver.lookup(schema[key])
    for inner in resource.subresources():
        _check_references(inner, resolver.in_subresource(inner))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r:.60} stands in it twice")
        found[key] = value
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _told(error: ValidationError) -> str:
    """A fault and its place, with what stands there as JSON and not longer than a line holds."""
    fault = best_match([error])
    found, shown = repr(fault.instance), json.dumps(fault.instance, ensure_ascii=False)
    message = fault.message.replace(found, shown if len(shown) <= 30 else f"{shown[:27]}...", 1)
    place = fault.json_path.removeprefix("$").removeprefix(".")
    return f"{place[:40]}: {message[:80]}" if place else message[:100]


def _wanted(schema: Mapping[str, Any]) -> str:
    """What a call takes, in a few words."""
    required = schema.get("required", ())
    told = [
        f"{name} ({_type(value)}{'' if name in required else ', optional'})"
        for name, value in schema.get("properties", {}).items()
    ]
    words = ", ".join(told) or "no arguments"
    return words if len(words) <= 120 else f"{words[:117]}..."


def _type(schema: Any) -> str:
    found = schema.get("type", "any") if isinstance(schema, dict) else "any"
    return found if isinstance(found, str) else " or ".join(found)
