"""Tokens and passwords stay out of errors, records and logs, wherever they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.terminal import print_line
from harness.core.errors import BitgridError
from harness.core.secrets import HIDDEN, hide_secrets
from harness.core.store import Store
from harness.run.compute import fail
from tests.support.toys import Made

SECRETS = {
    "HF_TOKEN": "hf_aBcDeFgHiJkLmNoP",
    "WANDB_API_KEY": "0123456789abcdef",
    "PASSWD": "correct-horse",
}
URL = "https://somebody:battery-staple@hub.example/x?X-Amz-Signature=5ca1ab1e&n=3"
SAID = f"{' '.join(SECRETS.values())} {URL} Authorization: Bearer abcdef.012345 hf_anotherToken"
HIDE = (*SECRETS.values(), "battery-staple", "5ca1ab1e", "abcdef.012345", "hf_anotherToken")


@pytest.fixture(autouse=True)
def _in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def test_secrets_are_hidden_and_the_rest_stays() -> None:
    hidden = hide_secrets(SAID)
    assert not [secret for secret in HIDE if secret in hidden]
    assert f"https://{HIDDEN}@hub.example/x?X-Amz-Signature={HIDDEN}&n=3" in hidden


@pytest.mark.parametrize(
    "text",
    ["model: a/b at 0.25, 3 tokens", "https://hub.example/a?n=3", "seed=1, key=abc", "a@b.c"],
)
def test_what_is_no_secret_stays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "hub.example")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    assert hide_secrets(text) == text


def test_an_error_line_has_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(SAID)
    lines = [str(BitgridError(SAID)), capsys.readouterr().out]
    assert not [secret for secret in HIDE for line in lines if secret in line]


def test_the_record_of_a_failure_has_no_secret(tmp_path: Path) -> None:
    stage, store = Made("A", 2), Store(tmp_path)
    try:
        raise OSError(SAID + "\ud800\n" + SAID)
    except OSError as error:
        fail(stage, error, store)
    record = store.failure(stage.key)
    assert record is not None and "OSError" in record["traceback"]
    assert r"\ud800" in record["message"] and "\n" not in record["message"]
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert texts and not [secret for secret in HIDE for text in texts if secret in text]
