"""service.datasets.checking.conversion: the child that parses, and the meaning of its exit."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hifi.data.formats import ENDINGS
from hifi.data.inference import complete_task
from hifi.data.spec import TaskSpec
from hifi.data.splits import load_split
from hifi.errors import DataError
from service.datasets.checking import conversion
from service.datasets.checking.conversion import ConvertedDataset, convert
from service.datasets.checking.errors import DatasetInvalidError, UploadTooSlowError
from service.datasets.checking.exchange import Limits, UploadedFile
from store.errors import ArtifactStorageError
from tests.hifi.data.files import jsonl, write
from tests.root import ROOT
from tests.tiny_tasks import text_rows
from tests.waiting import eventually, eventually_async, within

pytestmark = pytest.mark.process

LIMITS = Limits(seconds=60, memory=1 << 30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def upload(
    folder: Path, *, limits: Limits = LIMITS, **files: Path | UploadedFile
) -> ConvertedDataset:
    given = {
        split: file
        if isinstance(file, UploadedFile)
        else UploadedFile(path=file, filename=file.name)
        for split, file in files.items()
    }
    return asyncio.run(convert(given, folder=folder, limits=limits))


def refusal_of(folder: Path, *, limits: Limits = LIMITS, **files: Path) -> DatasetInvalidError:
    with pytest.raises(DatasetInvalidError) as caught:
        upload(folder, limits=limits, **files)
    return caught.value


@pytest.fixture
def replace_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that replaces pyarrow by other code, in the child only."""

    def put(code: str) -> None:
        module = tmp_path / "fake" / "pyarrow"
        module.mkdir(parents=True)
        (module / "__init__.py").write_text(textwrap.dedent(code))
        path = f"{module.parent}:{ROOT}"
        monkeypatch.setitem(conversion._ENVIRONMENT, "PYTHONPATH", path)

    return put


class TestSplits:
    def test_become_parquet(self, folder: Path, tmp_path: Path):
        rows = text_rows(20)
        done = upload(
            folder,
            train=jsonl(tmp_path / "a.jsonl", rows),
            validation=write(tmp_path / "b.csv", "text,label\na,1\nb,0\n"),
            test=write(tmp_path / "c.tsv", "text\na\n"),
        )
        assert done.profile.rows == {"train": 20, "validation": 2, "test": 1}
        assert load_split(done.paths["train"], split="train").to_list() == rows
        columns = [(column.name, column.type) for column in done.profile.columns]
        assert columns == [("text", "string"), ("label", "int64")]
        assert json.loads(json.dumps(done.profile.to_json())) == done.profile.to_json()
        assert sorted(path.name for path in folder.iterdir()) == [
            "test.parquet",
            "train.parquet",
            "validation.parquet",
        ]

    @pytest.mark.parametrize(
        "name",
        [
            "../../etc/passwd.csv",
            "/abs/x.CSV",
            "C:\\data\\x.csv",
            "a;b.csv",
            "-rf.csv",
            "\0.csv",
            "ü\n.csv",
            ".csv",
            "x" * 5000 + ".csv",
        ],
    )
    def test_only_the_suffix_of_a_name_counts(self, name: str, tmp_path: Path):
        path = write(tmp_path / "upload-1", "text,label\na,1\nb,0\n")
        assert UploadedFile(path=path, filename=name).ending == ".csv"

    @pytest.mark.parametrize("name", ["", "csv", "a.xlsx", "a.csv.gz", "a.csv/..", "a.csv ", "a."])
    def test_other_suffixes_are_refused_with_the_known_ones(
        self, name: str, folder: Path, tmp_path: Path
    ):
        path = write(tmp_path / "upload-1", "text,label\na,1\nb,0\n")
        with pytest.raises(
            DatasetInvalidError, match=rf"'.*' must end in one of {re.escape(', '.join(ENDINGS))}$"
        ) as caught:
            upload(folder, train=UploadedFile(path=path, filename=name))
        assert caught.value.param == "train"

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("größe.xlsx", "'größe.xlsx'"),
            ("a\x1b[31m\r\n.exe", r"'a\x1b[31m\r\n.exe'"),
            ("../" * 9 + "passwd", "'passwd'"),
            ("x" * 5000 + ".exe", "'xxx"),
        ],
    )
    def test_a_refused_name_is_shown_safely(self, name: str, shown: str, folder, tmp_path: Path):
        path = write(tmp_path / "upload-1", "text,label\na,1\nb,0\n")
        with pytest.raises(DatasetInvalidError) as caught:
            upload(folder, train=UploadedFile(path=path, filename=name))
        assert f"the file's name {shown}" in caught.value.reason
        assert len(caught.value.reason) < 300

    def test_a_path_of_any_name_is_read(self, folder: Path, tmp_path: Path):
        path = write(tmp_path / "no ending; $(x)", "text,label\na,1\nb,0\n")
        done = upload(folder, train=UploadedFile(path=path, filename="../t.csv"))
        assert done.profile.rows["train"] == 2


class TestRefusals:
    def test_are_problems_that_name_the_place(self, folder: Path, tmp_path: Path):
        error = refusal_of(
            folder,
            train=write(tmp_path / "a.csv", "text,label\na,1\nb,0\n"),
            validation=write(tmp_path / "b.csv", "text,label\na,1\nb\0,0\n"),
        )
        assert (error.code, error.status, error.param) == ("dataset_invalid", 422, "validation")
        assert error.extra == {"split": "validation", "row": 2, "line": 3, "column": "text"}
        assert (
            error.detail
            == "validation, row 2 (line 3), column 'text': the text holds a NUL character"
        )

    @pytest.mark.parametrize(
        ("train", "validation", "place", "words"),
        [
            ("text,label\na,1\n ,0\n", None, ("train", 2, "text"), "the text is empty"),
            ("text,label\na,1\nb,\n", None, ("train", 2, "label"), "the label is missing"),
            ("text,label\na,1\nb,1\n", None, ("train", None, "label"), "at least two classes"),
            ("text,label\na,x\nb,\n", None, ("train", 2, "label"), "the label is empty"),
            ("text,label\na,0.5\nb,inf\n", None, ("train", 2, "label"), "not a finite number"),
            ("text,label\na,0.5\nb,NA\n", None, ("train", 2, "label"), "the target is missing"),
            ("text,n\na,1\n,0\n", None, ("train", 2, "text"), "the text is empty"),
            (
                "text,label\na,1\nb,0\n",
                "text,label\na,1\nb,7\n",
                ("validation", 2, "label"),
                "the label '7' does not occur in train; known are 0, 1",
            ),
            (
                "text,label\na,1\nb,0\n",
                "text,label\na,1\n\t,0\n",
                ("validation", 2, "text"),
                "the text is empty",
            ),
            (
                "text,label\na,1\nb,0\n",
                "text,lable\na,1\n",
                ("validation", None, "label"),
                "validation has no such column",
            ),
        ],
    )
    def test_of_rows_that_a_certain_task_cannot_use(
        self, train: str, validation: str | None, place, words: str, tmp_path: Path
    ):
        files = {"train": write(tmp_path / "a.csv", train)}
        if validation is not None:
            files["validation"] = write(tmp_path / "b.csv", validation)
        error = refusal_of(tmp_path, **files)
        assert (error.split, error.row, error.column) == place
        assert words in error.reason
        assert error.param == place[0]

    def test_leave_numbers_that_are_no_classes_to_the_job(self, folder: Path, tmp_path: Path):
        done = upload(
            folder,
            train=write(tmp_path / "a.csv", "text,stars\na,1\nb,2\n"),
            validation=write(tmp_path / "b.csv", "text,stars\nc,5\n"),
        )
        assert complete_task(TaskSpec(type="regression"), done.profile).label == "stars"
        with pytest.raises(DataError, match="the label '5' does not occur in train"):
            complete_task(TaskSpec(), done.profile)

    def test_leave_ambiguous_columns_to_the_job(self, folder: Path, tmp_path: Path):
        # Of two texts and a number the number may be no label at all: a job will tell.
        content = "text,topic,id\na,x,1\nb,y,2\n"
        done = upload(
            folder,
            train=write(tmp_path / "a.csv", content),
            validation=write(tmp_path / "b.csv", content.replace("1", "3")),
        )
        assert done.profile.columns[2].problems["label"]["validation"].row == 1

    def test_do_not_cover_tests_without_labels(self, folder: Path, tmp_path: Path):
        train = write(tmp_path / "a.csv", "text,label\na,1\nb,0\n")
        for test in ("text\na\n", "text,label\na,-1\n", "text,label\na,\n"):
            upload(folder, train=train, test=write(tmp_path / "c.csv", test))
        error = refusal_of(folder, train=train, test=write(tmp_path / "c.csv", "text\na\n \n"))
        assert (error.split, error.row) == ("test", 2)

    def test_of_splits_of_other_types(self, folder: Path, tmp_path: Path):
        error = refusal_of(
            folder,
            train=jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 1}]),
            validation=jsonl(tmp_path / "b.jsonl", [{"text": "a", "label": "x"}]),
        )
        assert (error.split, error.column) == ("validation", "label")
        assert error.reason == "the column holds string, in train it holds int64"


class TestTheChildsEnd:
    @pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL"])
    def test_a_crash_is_the_files_fault(self, name: str, folder: Path, tmp_path, replace_parser):
        replace_parser(f"import os, signal; os.kill(os.getpid(), signal.{name})")
        error = refusal_of(folder, train=write(tmp_path / "a.csv", "text,label\na,1\n"))
        assert (error.param, error.row) == ("train", None)
        assert "cannot be parsed" in error.reason

    @pytest.mark.parametrize("code", ["raise KeyError('secret')", "import os; os._exit(3)"])
    def test_an_error_of_ours_is_no_answer(self, code: str, folder, tmp_path, replace_parser):
        replace_parser(code)
        error = refusal_of(folder, train=write(tmp_path / "a.csv", "text,label\na,1\n"))
        assert "secret" not in error.detail

    def test_silence_is_ended(self, folder: Path, tmp_path: Path, replace_parser):
        replace_parser("import time; time.sleep(600)")
        limits = replace(LIMITS, seconds=1)
        with within(5), pytest.raises(UploadTooSlowError, match="more than 1 seconds") as caught:
            upload(folder, train=write(tmp_path / "a.csv", "a\n"), limits=limits)
        error = caught.value
        assert (error.code, error.status, error.param) == ("upload_too_slow", 422, "train")

    def test_work_without_end_is_ended(self, folder: Path, tmp_path: Path, replace_parser):
        replace_parser(
            "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 9))\nwhile 1: 0"
        )
        with pytest.raises(UploadTooSlowError):
            upload(folder, train=write(tmp_path / "a.csv", "a\n"))

    def test_it_ends_with_its_caller(self, folder: Path, tmp_path: Path, replace_parser):
        note = tmp_path / "pid"
        replace_parser(
            f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        )
        file = UploadedFile(path=write(tmp_path / "a.csv", "a\n"), filename="a.csv")

        async def leave() -> int:
            caller = asyncio.create_task(convert({"train": file}, folder=folder, limits=LIMITS))
            child = await eventually_async(lambda: note.exists() and int(note.read_text() or 0))
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            return child

        assert not is_alive(asyncio.run(leave()))

    def test_memory_is_bounded(self, folder: Path, tmp_path: Path, replace_parser):
        replace_parser("x = bytearray(3 << 30)")
        error = refusal_of(folder, train=write(tmp_path / "a.csv", "a\n"))
        assert error.code == "dataset_invalid"
        assert f"needs more than {1 << 30} bytes of memory" in error.reason

    def test_a_kill_by_the_kernel_is_reported_as_memory(
        self, folder: Path, tmp_path: Path, replace_parser
    ):
        replace_parser("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        error = refusal_of(folder, train=write(tmp_path / "a.csv", "a\n"))
        assert "bytes of memory" in error.reason

    def test_noise_without_end_is_cut(
        self, folder: Path, tmp_path: Path, replace_parser, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(conversion, "_MOST_ANSWER_BYTES", 1 << 20)
        replace_parser("while True: print('x' * 10_000)")
        error = refusal_of(folder, train=write(tmp_path / "a.csv", "a\n"))
        assert "cannot be parsed" in error.reason

    def test_a_full_disk_is_no_client_error(self, folder: Path, tmp_path: Path, replace_parser):
        replace_parser(f"raise OSError({errno.ENOSPC}, 'no room')")
        with pytest.raises(ArtifactStorageError, match="No space left"):
            upload(folder, train=write(tmp_path / "a.csv", "a\n"))

    def test_no_secret_is_in_its_environment(
        self, folder: Path, tmp_path: Path, replace_parser, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("HIFI_INFER_TOKEN", "do not tell")
        monkeypatch.setenv("HIFI_DATABASE_URL", "postgresql://x:hidden@y/z")
        replace_parser(f"import os; open({str(tmp_path / 'env')!r}, 'w').write(str(os.environ))")
        refusal_of(folder, train=write(tmp_path / "a.csv", "a\n"))
        told = (tmp_path / "env").read_text()
        assert "do not tell" not in told
        assert "hidden" not in told

    def test_it_ends_with_the_gateway(self, folder: Path, tmp_path: Path):
        module = tmp_path / "fake" / "pyarrow"
        module.mkdir(parents=True)
        note = tmp_path / "pid"
        (module / "__init__.py").write_text(
            f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
        )
        path = write(tmp_path / "a.csv", "text,label\na,1\n")
        code = f"""
            import asyncio
            from pathlib import Path
            from service.datasets.checking import conversion
            from service.datasets.checking import exchange
            conversion._ENVIRONMENT["PYTHONPATH"] = "{module.parent}:{ROOT}"
            file = exchange.UploadedFile(path=Path("{path}"), filename="a.csv")
            limits = exchange.Limits(seconds=600, memory=1 << 30)
            asyncio.run(
                conversion.convert({{"train": file}}, folder=Path("{folder}"), limits=limits)
            )
        """
        gateway = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
        try:
            child = eventually(lambda: note.exists() and int(note.read_text() or 0))
        finally:
            gateway.kill()
            gateway.wait()
        eventually(lambda: not is_alive(child))


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2][:3]
    except (ProcessLookupError, FileNotFoundError):
        return False


class TestHostileParquet:
    def test_a_page_larger_than_memory(self, folder: Path, tmp_path: Path):
        path = tmp_path / "a.parquet"
        text = pa.array([b"\0" * 120_000_000])
        pq.write_table(pa.table({"a": text}), path, compression="zstd", use_dictionary=False)
        assert path.stat().st_size < 1_000_000
        error = refusal_of(folder, train=path, limits=replace(LIMITS, memory=400 << 20))
        assert f"needs more than {400 << 20} bytes of memory" in error.reason

    def test_bytes_that_flip(self, folder: Path, tmp_path: Path):
        rows = {"text": [f"text {row}" for row in range(500)], "label": [0, 1] * 250}
        pq.write_table(pa.table(rows), tmp_path / "a.parquet")
        whole = (tmp_path / "a.parquet").read_bytes()
        generator = random.Random(0)  # noqa: S311 - a draw, not a secret
        for _ in range(8):
            broken = bytearray(whole)
            for _ in range(generator.randint(1, 8)):
                broken[generator.randrange(4, len(whole) - 8)] ^= 1 << generator.randrange(8)
            path = write(tmp_path / "b.parquet", bytes(broken))
            try:
                upload(folder, train=path)
            except DatasetInvalidError as error:
                assert error.param == "train"  # noqa: PT017 - either is right


class TestMemory:
    MEASURE = """
        import asyncio, resource, sys
        from pathlib import Path
        from service.datasets.checking import conversion
        from service.datasets.checking import exchange
        path = Path(sys.argv[1])
        file = exchange.UploadedFile(path=path, filename=path.name)
        limits = exchange.Limits(seconds=600, memory=1 << 30)
        folder = Path(sys.argv[2])
        asyncio.run(conversion.convert({"train": file}, folder=folder, limits=limits))
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
    """

    # A file of 1 MiB takes 90 MiB, of which pyarrow is 70. Of CSV pyarrow reads 64 MiB ahead.
    @pytest.mark.parametrize(
        ("name", "size", "most"),
        [
            ("a.csv", 200, 260),
            ("a.jsonl", 100, 150),
            ("list.json", 100, 150),
            ("squad.json", 50, 200),
            ("a.parquet", 100, 200),
        ],
    )
    def test_does_not_grow_with_the_file(
        self, name: str, size: int, most: int, folder: Path, tmp_path: Path
    ):
        path = tmp_path / name
        MAKERS[name](path, size)
        assert path.stat().st_size > 0.95 * (size << 20)
        measured = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(self.MEASURE), str(path), str(folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(measured.stdout) < most

    def test_of_the_gateway_holds_no_parser(self):
        code = "import sys; import service.app; print(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        loaded = {name.partition(".")[0] for name in done.stdout.split()}
        assert {"service", "store", "hifi"} <= loaded
        assert not loaded & {
            *("PIL", "datasets", "huggingface_hub", "numpy", "pandas", "pyarrow", "safetensors"),
            *("torch", "transformers", "worker"),
        }


TEXT = "the quick brown fox jumps over the lazy dog, and once more " * 20


def make_csv(path: Path, mebibytes: int) -> None:
    rows = "".join(f'"{TEXT} {row}",{row % 2}\n' for row in range(860))
    path.write_text("text,label\n" + rows * mebibytes)


def make_jsonl(path: Path, mebibytes: int) -> None:
    rows = "".join(
        json.dumps({"text": f"{TEXT} {row}", "label": row % 2}) + "\n" for row in range(860)
    )
    path.write_text(rows * mebibytes)


def make_parquet(path: Path, mebibytes: int) -> None:
    rows = {"text": [f"{TEXT} {row}" for row in range(860)], "label": [0, 1] * 430}
    table = pa.concat_tables([pa.table(rows)] * mebibytes)
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=10**9)


def make_list(path: Path, mebibytes: int) -> None:
    rows = ",".join(json.dumps({"text": f"{TEXT} {row}", "label": row % 2}) for row in range(860))
    path.write_text("[" + ",".join([rows] * mebibytes) + "]")


def make_squad(path: Path, mebibytes: int) -> None:
    """Write a single article on one line."""
    answers = [{"text": TEXT[:10], "answer_start": 0}]
    asked = [{"id": f"q{each}", "question": "What?", "answers": answers} for each in range(5)]
    paragraphs = ",".join(json.dumps({"context": TEXT, "qas": asked}) for _ in range(640))
    articles = ",".join([paragraphs] * mebibytes)
    path.write_text('{"data": [{"title": "a", "paragraphs": [' + articles + "]}]}")


MAKERS = {
    "a.csv": make_csv,
    "a.jsonl": make_jsonl,
    "list.json": make_list,
    "squad.json": make_squad,
    "a.parquet": make_parquet,
}
