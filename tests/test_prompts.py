"""Prompts: what is a text and what a file, conversations, and tokens by their texts."""

from __future__ import annotations

import copy
import io
import pathlib
from typing import Any

import pytest
import torch

import jetgraph as jg
from jetgraph.applications.readout import said_of
from jetgraph.applications.subject import TokenWarning, encode_token
from jetgraph.cli import options
from jetgraph.prompts import texts_of

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% if not loop.last %}</{{ m.role }}>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def loaded() -> Any:
    found = jg.load_model("demo", meta=True)
    assert found.tokenizer is not None
    return found


def test_a_conversation_is_written_by_the_template(loaded: Any) -> None:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = TEMPLATE
    asked = jg.load_model("demo", meta=True, tokenizer=tokenizer)
    chat = jg.chat("Raise", system="Be short")
    assert chat == "Raise"
    ids = asked.inputs(chat)["input_ids"]
    assert tokenizer.decode(ids[0]) == "<system>Be short</system><user>Raise<assistant>"
    begun = jg.chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "Value"}])
    assert tokenizer.decode(asked.inputs(begun)["input_ids"][0]).endswith("<assistant>Value")
    assert asked.inputs([chat, "Value"])["input_ids"].shape[0] == 2
    with pytest.raises(jg.InputError, match="refuses these turns: no tools"):
        asked.inputs(jg.chat([{"role": "tool", "content": "a"}]))
    with pytest.raises(jg.InputError, match="has no chat template"):
        loaded.inputs(chat)
    for wrong in ([], [{"role": "user"}]):
        with pytest.raises(jg.InputError, match="one turn or more"):
            jg.chat(wrong)


def test_a_string_is_a_text_and_a_path_a_file(loaded: Any, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Raise Value\n")
    ids = loaded.inputs("Raise Value")["input_ids"]
    assert loaded.inputs(file)["input_ids"].equal(ids)
    assert loaded.inputs([file, "Raise Value"])["input_ids"].shape == (2, ids.shape[1])
    # What is written in code may look like the name of a file.
    assert loaded.inputs("main.py")["input_ids"].shape[1] > 1
    assert texts_of("some words") == ["some words"]
    assert texts_of([file, "b.txt"]) == ["Raise Value\n", "b.txt"]
    with pytest.raises(jg.InputError, match=r"give pathlib\.Path"):
        texts_of(str(file))
    with pytest.raises(jg.FileError, match=r"no text file .none\.txt."):
        texts_of("none.txt")
    with pytest.raises(jg.FileError, match="no text file"):
        loaded.inputs(tmp_path / "none")


def test_prompts_on_the_command_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Raise Value\n")
    assert options.prompt_of(f"@{file}") == "Raise Value"
    monkeypatch.setattr("sys.stdin", io.StringIO("Raise Key\n"))
    assert options.prompt_of("-") == "Raise Key"
    with pytest.raises(jg.FileError, match="no text file"):
        options.prompt_of("@none")


def test_a_prompt_says_what_it_became(loaded: Any) -> None:
    tokenizer = loaded.tokenizer
    ids = loaded.inputs("Raise Value")["input_ids"][0].tolist()
    assert said_of(tokenizer, ids).startswith("7 tokens, no token is put before it: 'R' 'a' 'ise'")
    begun = said_of(tokenizer, [tokenizer.eos_token_id, *ids], most=2)
    assert begun.startswith("8 tokens, begins with '<|endoftext|>': ")
    assert begun.endswith(" … 'ue'")
    assert said_of(None, ids) == ""
    # A part of a character has no text of its own.
    assert said_of(tokenizer, tokenizer("é")["input_ids"]).endswith(": <Ã> <©>")
    with torch.device("meta"):
        assert loaded.inputs(["Raise Value", "R"])["attention_mask"].sum(1).tolist() == [7, 1]


def test_tokens_by_text(loaded: Any, recwarn: pytest.WarningsRecorder) -> None:
    """A text is the token that it is; else that of the text behind a space; its first where that is asked for."""
    tokenizer = loaded.tokenizer
    assert tokenizer.decode(encode_token(tokenizer, "Error", "target")) == "Error"
    assert tokenizer.decode(encode_token(tokenizer, "Errorful…", "target")) == "Error"
    assert tokenizer.decode(encode_token(tokenizer, " need...", "target")) == " need"
    spaced = next(
        text
        for index in range(len(tokenizer))
        if (text := tokenizer.decode([index]))[:1] == " "
        and len(tokenizer(text[1:])["input_ids"]) > 1
        and tokenizer(text)["input_ids"] == [index]
    )
    assert not [one for one in recwarn if one.category is TokenWarning]
    with pytest.warns(TokenWarning, match=f"and '{spaced}' is one, #"):
        assert tokenizer.decode(encode_token(tokenizer, spaced[1:], "target")) == spaced
    with pytest.raises(jg.InputError, match=r"is 4 tokens \('E', 'r', 'r', 'ot'\).*write 'Errot…' for the first"):
        encode_token(tokenizer, "Errot", "target")
    with pytest.raises(jg.InputError, match="…"):
        encode_token(tokenizer, "…", "target")
