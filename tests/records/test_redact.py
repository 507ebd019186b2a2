"""Secrets do not reach the store; ordinary text does, unchanged."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.records.redact import redact

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----"
SECRETS = {
    KEY: "private key",
    KEY.replace("RSA ", ""): "private key",
    "sk-" + "a1B2" * 6: "api key",
    "sk-proj-" + "a1B2" * 6: "api key",
    "AIza" + "x" * 35: "api key",
    "xoxb-" + "1234567890-abc": "api key",
    "ghp_" + "a" * 36: "access token",
    "hf_" + "b" * 34: "access token",
    "github_pat_" + "c" * 40: "access token",
    "AKIA" + "Q" * 16: "cloud key",
    "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF2Q": "web token",
    "Bearer abcdefghijklmnop.qrstuv": "bearer",
    "password: hunter2hunter2": "password",
    "API_KEY=0123456789abcdef": "password",
}
ORDINARY = (
    "It is Paris.",
    "To: Philippa Vane\nI have read your message, Philippa, and will help today.",
    "Stop this, or I will tell everybody about the whisky.",
    "The password is not written down anywhere.",
    "A bearer of good news; task-force; risk-averse; the eye is Jupiter's.",
    "-----BEGIN CERTIFICATE-----",
    "",
)


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_replaced_by_what_it_was(secret: str) -> None:
    text, count = redact(f"Here you are: {secret}\nThank you.")
    assert text == f"Here you are: [redacted: {SECRETS[secret]}]\nThank you."
    assert count == 1


def test_a_key_that_was_cut_off_is_replaced_to_the_end() -> None:
    assert redact("see " + KEY[:50]) == ("see [redacted: private key]", 1)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == (text, 0)


@given(st.lists(st.sampled_from(sorted(SECRETS)), min_size=1, max_size=5))
def test_every_secret_is_counted(secrets: list[str]) -> None:
    text, count = redact("\n".join(secrets))
    assert count == len(secrets)
    assert not any(secret in text for secret in secrets)


@given(st.text(), st.sampled_from(sorted(SECRETS)), st.text())
def test_redacting_again_finds_nothing_new(before: str, secret: str, after: str) -> None:
    text, _ = redact(f"{before}\n{secret}\n{after}")
    assert redact(text)[0] == text


@given(st.text(alphabet=st.characters(categories=["L", "Zs"])))
def test_letters_alone_are_no_secret(text: str) -> None:
    text = re.sub(r"(?i)bearer|akia|asia|aiza", "", text)
    assert redact(text) == (text, 0)
