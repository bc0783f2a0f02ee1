"""Share of responses that are JSON, and fit a schema where one is given."""

import json
from pathlib import Path

from jsonschema.validators import validator_for

from alignflow.evaluation import module
from alignflow.evaluation.about import MetricAbout
from alignflow.recipe import MetricArguments


class JsonArguments(MetricArguments):
    """The schema."""

    json_schema: str | None = None
    """Path of a JSON schema; by default the evaluation section's."""

    @property
    def files(self):
        """The schema's file."""
        return [self.json_schema] if self.json_schema else []


ABOUT = MetricAbout(name="json_validity", is_rate=True, judges_form=True, arguments=JsonArguments)


class JsonValidity(module.TextMetric):
    """The whole response must parse: text around the JSON is a failure. Targets are not used."""

    def _compute(self, predictions, references, schema=None, json_schema=None):
        del references
        if json_schema is not None:
            schema = json.loads(Path(json_schema).read_text())
        validator = None
        if schema is not None:
            kind = validator_for(schema)
            kind.check_schema(schema)
            validator = kind(schema)
        return module.means(json_validity=[float(_is_valid(p, validator)) for p in predictions])


def _is_valid(text, validator):
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return validator is None or validator.is_valid(value)


def _refuse(constant):
    raise ValueError(f"{constant} is not JSON")
