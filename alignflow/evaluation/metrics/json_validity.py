"""Share of responses that are JSON, and fit a schema where one is given."""

import json

import datasets
import evaluate
from jsonschema.validators import validator_for

_FEATURES = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}


class JsonValidity(evaluate.Metric):
    """The whole response must parse: text around the JSON is a failure. Targets are not used."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: responses; schema: a JSON schema, or None",
            features=datasets.Features(_FEATURES),
        )

    def _compute(self, predictions, references, schema=None):
        del references
        validator = None
        if schema is not None:
            kind = validator_for(schema)
            kind.check_schema(schema)
            validator = kind(schema)
        values = [float(_is_valid(prediction, validator)) for prediction in predictions]
        return {"json_validity": sum(values) / len(values), "per_prompt": {"json_validity": values}}


def _is_valid(text, validator):
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return validator is None or validator.is_valid(value)


def _refuse(constant):
    raise ValueError(f"{constant} is not JSON")
