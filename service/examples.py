"""Examples of the API's documents, for the OpenAPI document: one job, from data to prediction.

Without them the page of the API would invent texts from patterns. A test validates each against the
model of its name, and another posts the job.
"""

from __future__ import annotations

from typing import Any

_SHA256 = "2f549e3f0c4c7d1e8a6b5d3c9e0f1a2b4c6d8e0f2a4b6c8d0e2f4a6b8c0d2e4f"
_JOB, _DATASET = "job_3k9v0q7d5x2m8c4t6b1z9h0w", "ds_8f2a6k4m0c7q1x9v5t3z2b6d"
_TENANT, _KEY = "ten_1c5v9x3m7q2k6t0z4b8d2f6h", "key_6t2z8b4d0f1h7k3m9q5v1x2c"
_PREDICTION = "pred_5m1v7c3x9q2k8t4z0b6d1f5h"
_CREATED, _STARTED, _FINISHED = (f"2026-11-29T12:00:{second:02}Z" for second in (0, 2, 14))
_TEXT = "Return the eigenvalues of a sparse matrix."
_SCORES = {"pandas": 0.03, "scipy": 0.93, "sklearn": 0.03, "torch": 0.01}
_SIZES = {"float32": 2699088, "bfloat16": 1366288, "int8": 709936, "lora": 5355520}
_QUOTAS = {"max_queued": 1000, "max_running": 16, "max_bytes": 107374182400}
_TASK = {"type": "classification", "text": ["text"], "label": "library", "metric": "accuracy"}
_SPEC: dict[str, Any] = {
    "model": "all-MiniLM-L6-v2",
    "dataset": _DATASET,
    "task": _TASK,
    "k": 3,
    "training": {"epochs": 3, "learning_rate": 0.001, "batch_size": 32},
    "name": "libraries",
    "metadata": {"team": "search"},
}
_BACKBONE = {
    "id": "all-MiniLM-L6-v2",
    "object": "backbone",
    "architecture": "BertModel",
    "num_layers": 6,
    "num_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 32,
    "hidden_size": 384,
    "parameters": 22713216,
    "fingerprint": "sha256:e8cc6ae1c3aa1166b591f1abc946ecb69da6e373c386775be2a60e6f02ca08ae",
}
_TENANT_DOCUMENT = {
    "id": _TENANT,
    "object": "tenant",
    "name": "search",
    "is_admin": False,
    "quotas": _QUOTAS,
    "created_at": _CREATED,
    "suspended_at": None,
}
_KEY_DOCUMENT = {
    "id": _KEY,
    "object": "api_key",
    "tenant": _TENANT,
    "name": "ci",
    "created_at": _CREATED,
    "expires_at": "2027-02-27T12:00:00Z",
    "revoked_at": None,
}


def page_of(example: dict[str, Any]) -> dict[str, Any]:
    """Return the example of a list with this entry."""
    ends = {"first_id": example["id"], "last_id": example["id"]}
    return {"object": "list", "data": [example], "has_more": False, **ends}


# By the name of the model.
EXAMPLES: dict[str, dict[str, Any]] = {
    "JobSpec": _SPEC,
    "PredictionRequest": {"inputs": [{"text": _TEXT}]},
    "MixedPredictionRequest": {
        "inputs": [
            {"job": _JOB, "input": {"text": _TEXT}},
            {"jobs": [_JOB], "input": {"text": _TEXT}},
        ]
    },
    "NewTenant": {"name": "search", "max_running": 4},
    "NewQuotas": {"max_queued": 5000, "max_bytes": None},
    "NewKey": {"name": "ci", "expires_at": "2027-02-27T12:00:00Z"},
    "KeyReplacement": {"grace_seconds": 86400},
    "DatasetDocument": {
        "id": _DATASET,
        "object": "dataset",
        "name": "libraries",
        "splits": {"train": {"rows": 768}, "validation": {"rows": 192}},
        "columns": {"text": "string", "library": "string"},
        "notes": [],
        "bytes": 61234,
        "sha256": _SHA256,
        "created_at": _CREATED,
    },
    "BackboneDocument": _BACKBONE,
    "BackboneList": {
        **page_of(_BACKBONE),
        "unavailable": [
            {"id": "my-model", "status": "unusable", "reason": "config.json is missing"}
        ],
    },
    "EstimateDocument": {
        "object": "job.estimate",
        "classes": {"count": 4, "names": list(_SCORES), "alike": []},
        "trainable_parameters": 666820,
        "fraction": 0.0294,
        "artifact": {"bytes": _SIZES},
        "steps": 72,
        "seconds": 6.0,
        "spec": _SPEC,
        "warnings": [],
    },
    "JobDocument": {
        "id": _JOB,
        "object": "job",
        "status": "succeeded",
        "tenant": _TENANT,
        "name": "libraries",
        "metadata": {"team": "search"},
        "spec": _SPEC,
        "created_at": _CREATED,
        "started_at": _STARTED,
        "finished_at": _FINISHED,
        "progress": {
            "phase": None,
            "step": 72,
            "total_steps": 72,
            "fraction": 1.0,
            "eta_seconds": None,
        },
        "attempt": 1,
        "selection": {
            "heads": [[0, 2], [0, 3], [0, 4]],
            "trainable_parameters": 666820,
            "fraction": 0.0294,
        },
        "result": {
            "metrics": {"accuracy": 0.8333, "f1": 0.8331, "matthews": 0.7779, "loss": 0.4895},
            "test": None,
            "report": {
                "split": "validation",
                "classes": 4,
                "per_class": [
                    {"label": label, "precision": p, "recall": r, "f1": f1, "support": 48}
                    for label, p, r, f1 in (
                        ("pandas", 0.84, 0.875, 0.8571),
                        ("scipy", 0.8333, 0.8333, 0.8333),
                        ("sklearn", 0.8261, 0.7917, 0.8085),
                        ("torch", 0.8333, 0.8333, 0.8333),
                    )
                ],
                "confusion": [[42, 1, 2, 3], [3, 40, 3, 2], [3, 4, 38, 3], [2, 3, 3, 40]],
            },
            "yardsticks": {
                "majority": {"accuracy": 0.25, "f1": 0.1, "matthews": 0.0, "loss": 1.3863},
                "probe": {"accuracy": 0.7917, "f1": 0.7915, "matthews": 0.7229, "loss": 0.5593},
                "untuned": None,
            },
            "best_step": 72,
            "train_seconds": 4.7,
            "selection_seconds": 0.8,
            "samples_per_second": 487.0,
        },
        "warnings": [],
        "artifact": {
            "bytes": _SIZES["float32"],
            "sha256": _SHA256,
            "encodings": {
                name: {"bytes": size, "sha256": _SHA256} for name, size in _SIZES.items()
            },
        },
        "error": None,
    },
    "EventDocument": {
        "id": "evt_7",
        "object": "job.event",
        "created_at": _FINISHED,
        "level": "info",
        "type": "metrics",
        "message": "step 72/72: accuracy 0.8333",
        "data": {"step": 72, "accuracy": 0.8333},
    },
    "HeadsDocument": {
        "object": "job.heads",
        "job": _JOB,
        "model": "all-MiniLM-L6-v2",
        "fingerprint": "sha256:e8cc6ae1c3aa1166b591f1abc946ecb69da6e373c386775be2a60e6f02ca08ae",
        "score": "pagerank",
        "k": 1,
        "budget": None,
        "xi": 0.9,
        "d": 0.85,
        "strategy": "layer-wise",
        "teleport": "information",
        "n_samples": 300,
        "num_layers": 1,
        "num_heads": 2,
        "head_dim": 32,
        "trainable_parameters": 38500,
        "fraction": 0.0017,
        "layers": [
            {
                "layer": 0,
                "values": [0.46, 0.54],
                "information_richness": [11.2, 14.5],
                "correlation": [[0.0, 0.31], [0.31, 0.0]],
                "importance": [0.46, 0.54],
                "iterations": 14,
                "selected": [1],
            }
        ],
        "artifact": {
            "bytes": _SIZES["float32"],
            "sha256": _SHA256,
            "url": f"/jobs/{_JOB}/heads/delta",
        },
    },
    "LabelPrediction": {
        "index": 0,
        "job": _JOB,
        "label": "scipy",
        "score": 0.93,
        "scores": _SCORES,
    },
    "EntitiesPrediction": {
        "index": 0,
        "job": _JOB,
        "entities": [{"start": 9, "end": 15, "label": "place", "score": 0.97, "text": "London"}],
        "tags": ["O", "O", "B-place"],
    },
    "TokensInput": {"tokens": ["She", "left", "London"]},
    "QuestionInput": {"question": "Where did she go?", "context": "She left London for Turin."},
    "AnswerPrediction": {
        "index": 0,
        "job": _JOB,
        "answer": "Turin",
        "score": 0.91,
        "start": 20,
        "end": 25,
    },
    "ChoicesInput": {
        "text": "She opened the umbrella because",
        "choices": ["it had begun to rain.", "the sun was shining."],
    },
    "ChoicePrediction": {
        "index": 0,
        "job": _JOB,
        "choice": 0,
        "score": 0.88,
        "scores": [0.88, 0.12],
    },
    "PredictionList": {
        "object": "list",
        "data": [
            {"index": 0, "job": _JOB, "label": "scipy", "score": 0.93, "scores": _SCORES},
        ],
    },
    "NewBatchPrediction": {"dataset": _DATASET, "jobs": [_JOB], "format": "parquet"},
    "BatchPredictionDocument": {
        "id": _PREDICTION,
        "object": "prediction",
        "status": "succeeded",
        "tenant": _TENANT,
        "name": "archive",
        "dataset": _DATASET,
        "split": "train",
        "jobs": [_JOB],
        "format": "parquet",
        "truncate": True,
        "created_at": _CREATED,
        "started_at": _STARTED,
        "finished_at": _FINISHED,
        "progress": {"rows": 768, "total_rows": 768, "fraction": 1.0, "eta_seconds": None},
        "artifact": {
            "bytes": 71234,
            "sha256": _SHA256,
            "url": f"/predictions/{_PREDICTION}/result",
        },
        "error": None,
    },
    "TenantDocument": _TENANT_DOCUMENT,
    "UsageDocument": {
        "object": "tenant.usage",
        "tenant": _TENANT,
        "jobs": {"queued": 2, "training": 1, "succeeded": 40},
        "stored_bytes": 412000000,
        "quotas": _QUOTAS,
    },
    "KeyDocument": _KEY_DOCUMENT,
    "NewKeyDocument": {**_KEY_DOCUMENT, "secret": "hifi_…"},
    "AdminJobDocument": {
        "id": _JOB,
        "object": "admin.job",
        "tenant": _TENANT,
        "status": "training",
        "model": "all-MiniLM-L6-v2",
        "attempt": 1,
        "worker": "worker-1",
        "error": None,
        "created_at": _CREATED,
        "started_at": _STARTED,
        "finished_at": None,
    },
    "AuditDocument": {
        "id": "aud_4d8f2h6k0m3q7t1v5x9z2b4c",
        "object": "audit_event",
        "created_at": _CREATED,
        "action": "key.revoked",
        "actor": {
            "tenant": "ten_0a4c8e2g6i0k4m8o2q6s0u4w",
            "key": "key_1b5d9f3h7j1l5n9p3r7t1v5x",
            "request_id": "2dd5d0ad5b3e4f6fa1c7f8f0c0f3a9b1",
        },
        "tenant": _TENANT,
        "subject": _KEY,
        "details": {},
    },
    "Problem": {
        "type": "urn:hifi:problem:invalid_request",
        "title": "Invalid request",
        "status": 422,
        "detail": "k=13 is not allowed: a layer of 'all-MiniLM-L6-v2' has 12 selectable heads",
        "code": "invalid_request",
        "param": "k",
        "request_id": "2dd5d0ad5b3e4f6fa1c7f8f0c0f3a9b1",
        "errors": [],
    },
}
# The values of parameters in paths.
PARAMETERS = {
    "job_id": _JOB,
    "dataset_id": _DATASET,
    "prediction_id": _PREDICTION,
    "tenant_id": _TENANT,
    "key_id": _KEY,
}
