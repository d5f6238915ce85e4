"""What may differ between a page and what is printed, and what may not."""

from __future__ import annotations

import pytest

from tests.documented.answers import check_answer, check_output

TUNED = """\
classification of text by library (2 classes: pandas, torch); 768 rows; bfloat16 on cpu
scoring heads 32/300
scoring heads 300/300 ETA 0:00
layer 0   7.2 [10.9]  8.8
head      0     1     2
training 1/72 loss 1.383  591 samples/s  ETA 0:04
step 24/72  accuracy 0.7344
training 72/72 loss 0.798  487 samples/s  ETA 0:00
metrics  accuracy 0.7812  (step 72)
written  libraries.safetensors  2.70 MB  float32
sha256   2f549e3f…
true class  precision  recall  f1      rows  pandas  torch
pandas      0.8400     0.8750  0.8571  48    42      6
"""


class TestOutput:
    def test_the_machine_may_differ(self):
        printed = (
            TUNED.replace("bfloat16 on cpu", "float32 on cpu")
            .replace("[10.9]  8.8", " 10.9 [ 8.8]")
            .replace("2f549e3f…", "d1" * 32)
            .replace("step 72)", "step 48)")
            .replace("0.8571  48    42      6", "0.8472  48    41      7")
            .replace("ETA 0:04", "ETA 1:04\ntraining 9/72 loss 1.2  5 samples/s  ETA 0:31")
        )
        check_output(TUNED, printed)

    @pytest.mark.parametrize(
        ("shown", "printed"),
        [
            ("768 rows", "767 rows"),
            ("2 classes: pandas, torch", "2 classes: scipy, torch"),
            ("accuracy 0.7812", "f1 0.7812"),
            ("head      0     1     2", "head      0     1"),
            ("written", "stored"),
            ("step 24/72", "step 25/72"),
            ("rows  pandas  torch", "rows  pandas"),
            ("pandas      0.8400", "torch       0.8400"),
            ("written", "warning: rare classes\nwritten"),
            ("sha256   2f549e3f…\n", ""),
        ],
    )
    def test_words_columns_and_counts_may_not(self, shown, printed):
        with pytest.raises(AssertionError):
            check_output(TUNED, TUNED.replace(shown, printed))

    def test_dots_stand_for_the_rest(self):
        check_output("first\n\n…\n", "first\nsecond\nthird\n")
        with pytest.raises(AssertionError):
            check_output("first\n\n…\n", "other\nsecond\n")


class TestAnswer:
    @pytest.mark.parametrize(
        ("shown", "answered"),
        [
            ({"score": 0.93}, {"score": 0.1}),
            ({"bytes": 61234}, {"bytes": 28219}),
            ({"id": "ds_…"}, {"id": "ds_4c7n"}),
            ({"rows": [1, "…"]}, {"rows": [1, 2, 3]}),
            ({"confusion": [[4, 1], "…"]}, {"confusion": [[3, 2], [0, 5]]}),
            ({"scores": {"scipy": 0.9, "…": 0.1}}, {"scores": {"scipy": 0.5, "torch": 0.5}}),
            ({"revision": None, "notes": []}, {"revision": None, "notes": []}),
        ],
    )
    def test_may_differ(self, shown, answered):
        check_answer(shown, answered)

    @pytest.mark.parametrize(
        ("shown", "answered", "message"),
        [
            ({"scores": {"scipy": 0.9}}, {"scores": {"torch": 0.9}}, r"scores has no \['scipy'\]"),
            ({"a": 0.9}, {"a": 0.9, "b": 1}, r"\$ has more than shown: \['b'\]"),
            ({"label": "scipy"}, {"label": "torch"}, r"\$\.label: 'torch' instead of 'scipy'"),
            ({"rows": 768}, {"rows": 767}, r"\$\.rows: 767 instead of 768"),
            ({"rows": [1, 2]}, {"rows": [1]}, r"\$\.rows"),
            ({"rows": [1]}, {"rows": [1, 2]}, r"\$\.rows"),
            ({"confusion": [[4, 1]]}, {"confusion": [[4, 1, 2]]}, r"\$\.confusion"),
            ({"score": 0.9}, {"score": None}, r"\$\.score"),
            ({"error": {"code": "a"}}, {"error": "a"}, r"\$\.error"),
            ({"error": None}, {"error": "a"}, r"\$\.error"),
            ({"id": "ds_…"}, {"id": "job_1"}, r"\$\.id"),
            ([{"index": 0}], [{"index": 1}], r"\$\[0\]\.index"),
        ],
    )
    def test_may_not_differ(self, shown, answered, message):
        with pytest.raises(AssertionError, match=message):
            check_answer(shown, answered)
