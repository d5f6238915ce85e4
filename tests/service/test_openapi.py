"""service.openapi: the document describes what the gateway does."""

from __future__ import annotations

import pytest
from jsonschema_rs import Draft202012Validator

from service.app import build_app
from service.examples import EXAMPLES
from tests.service.gateways import add_backbone, opened, settings_for, upload


@pytest.fixture
def document(client, alice):
    return client.get("/openapi.json", headers=alice.headers).json()


def operations(document):
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


class TestDocument:
    def test_every_refusal_is_a_problem(self, document):
        refusals = [
            response
            for _, _, operation in operations(document)
            for status, response in operation["responses"].items()
            if status >= "4"
        ]
        assert len(refusals) > 100
        schema = {"$ref": "#/components/schemas/Problem"}
        for response in refusals:
            assert response["content"] == {"application/problem+json": {"schema": schema}}

    def test_every_reference_leads_somewhere(self, document):
        schemas = document["components"]["schemas"]
        seen = []

        def walk(node):
            if isinstance(node, dict):
                if "$ref" in node:
                    seen.append(node["$ref"])
                    assert node["$ref"].removeprefix("#/components/schemas/") in schemas
                node = list(node.values())
            if isinstance(node, list):
                for child in node:
                    walk(child)

        walk(document)
        assert "#/components/schemas/JobSpec" in seen

    def test_public_operations_are_marked(self, document):
        assert document["security"] == [{"key": []}]
        public = {
            path for path, _, operation in operations(document) if operation.get("security") == []
        }
        assert public == {"/healthz", "/readyz"}
        for path, _, operation in operations(document):
            assert ("401" in operation["responses"]) == (path not in public)

    def test_the_job_schema_is_complete(self, document):
        operation = document["paths"]["/jobs"]["post"]
        assert set(operation["responses"]) == {
            *("200", "202", "400", "401", "403", "404", "409", "413", "415", "422", "429", "503"),
        }
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert names == {"dry_run", "Idempotency-Key"}
        spec = document["components"]["schemas"]["JobSpec"]
        assert spec["required"] == ["model", "dataset"]
        assert spec["additionalProperties"] is False

    @pytest.mark.parametrize(
        ("path", "model", "items"),
        [
            (
                "/jobs/{job_id}/predict",
                "PredictionRequest",
                ["TextInput", "ImageInput", "TokensInput", "QuestionInput", "ChoicesInput"],
            ),
            ("/predict", "MixedPredictionRequest", ["JobInput", "SharedInput"]),
        ],
    )
    def test_the_prediction_schemas_are_complete(self, document, path, model, items):
        operation = document["paths"][path]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{model}"}
        inputs = document["components"]["schemas"][model]["properties"]["inputs"]
        assert (inputs["minItems"], inputs["maxItems"]) == (1, 256)
        *named, anything = inputs["items"]["anyOf"]
        assert named == [{"$ref": f"#/components/schemas/{name}"} for name in items]
        assert set(anything) == {"description"}  # each is looked at by itself
        answers = document["components"]["schemas"]["PredictionList"]["properties"]["data"]
        assert answers["items"]["anyOf"] == [
            {"$ref": f"#/components/schemas/{name}Prediction"}
            for name in (
                *("Label", "Labels", "Value", "Entities", "Answer", "Choice", "Failed", "Shared"),
            )
        ]
        assert {"429", "503", "413", "415"} <= set(operation["responses"])

    def test_without_keys_no_security_is_required(self, tmp_path, sqlite_url):
        with opened(settings_for(tmp_path / "home", sqlite_url, auth="none")) as client:
            document = client.get("/openapi.json").json()
            assert client.get("/docs").status_code == 200
        assert "security" not in document
        assert "401" not in document["paths"]["/jobs"]["post"]["responses"]

    def test_names_of_operations_are_unique(self, settings):
        document = build_app(settings).openapi()
        names = [operation["operationId"] for _, _, operation in operations(document)]
        assert len(names) == len(set(names))


class TestExamples:
    def test_every_call_has_them(self, document):
        """The page of the API invents texts where there is none."""
        schemas = document["components"]["schemas"]
        missing = []
        for path, method, operation in operations(document):
            contents = [operation.get("requestBody", {}).get("content", {})]
            contents += [
                response.get("content", {})
                for status, response in operation["responses"].items()
                if status < "3"
            ]
            for content in contents:
                schema = content.get("application/json", {}).get("schema", {})
                name = schema.get("$ref", "").rpartition("/")[2]
                if name and "examples" not in schemas[name] and name not in {"Health", "Ready"}:
                    missing.append((method, path, name))
            missing += [
                (method, path, parameter["name"])
                for parameter in operation.get("parameters", ())
                if parameter["in"] == "path" and "example" not in parameter
            ]
        assert missing == []

    def test_are_what_their_schemas_say(self, document):
        seen = 0
        for name, schema in document["components"]["schemas"].items():
            for example in schema.get("examples", ()):
                whole = {"$ref": f"#/components/schemas/{name}", **document}
                Draft202012Validator(whole).validate(example)
                seen += 1
        assert seen > 25

    @pytest.mark.process
    def test_the_first_of_a_job_can_be_posted(self, client, alice, database):
        """With this data set, on a worker that has the backbone."""
        spec = EXAMPLES["JobSpec"]
        add_backbone(database, spec["model"])
        content = b"text,library\n" + b"".join(
            b"text %d,%s\n" % (row, name)
            for row, name in enumerate([b"pandas", b"scipy", b"sklearn", b"torch"] * 4)
        )
        upload(client, alice, content, name="libraries")
        body = {**spec, "dataset": "libraries"}
        answer = client.post("/jobs", json=body, headers=alice.headers)
        assert answer.status_code == 202, answer.text
        assert EXAMPLES["JobDocument"].keys() == answer.json().keys()
