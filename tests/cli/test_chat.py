import io
import os
import pty
import select
import signal
import subprocess
import sys
import time

from tests.cli.commands import match, run


def say(capsys, monkeypatch, text: str, *words: str):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return run(capsys, "chat", *words)


def test_in_a_pipe_a_line_is_answered_by_a_line(embedded_decoder, capsys, monkeypatch):
    lines = "What is the capital of France?\n\n/reset\n/system Be brief.\nWhat is the capital of France?\n"
    status, out, _ = say(capsys, monkeypatch, lines, "embedded-decoder", "--max_new_tokens", "12")
    assert status == 0 and out.splitlines()[0] == "The capital of France is Paris."
    assert len(out.splitlines()) == 2
    status, out, _ = say(capsys, monkeypatch, "/quit\nHi\n", "embedded-decoder")
    assert (status, out) == (0, "")


def test_a_base_without_a_template_answers_one_message(tiny_decoder, capsys, monkeypatch):
    words = (str(tiny_decoder), "--max_new_tokens", "2")
    status, out, _ = say(capsys, monkeypatch, "one\n/reset\none\n", *words)
    assert status == 0 and len(set(out.splitlines())) == 1
    status, out, err = say(capsys, monkeypatch, "one\ntwo\n", *words)
    assert status == 2 and len(out.splitlines()) == 1
    match("no chat template.* /reset", err)
    status, _, err = say(capsys, monkeypatch, "/rest\n", *words)
    assert status == 2 and "no command /rest: /reset begins a new chat" in err
    status, _, err = say(capsys, monkeypatch, "one\n", *words, "--num_beams", "2")
    assert status == 2 and "num_beams" in err


def until(terminal: int, text: str, timeout_s: float = 120.0) -> str:
    """What a terminal shows, up to a text."""
    shown, end = "", time.monotonic() + timeout_s
    while text not in shown:
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def test_at_a_terminal_ctrl_c_ends_the_answer_and_ctrl_d_the_chat(embedded_decoder):
    ours, theirs = pty.openpty()
    words = [sys.executable, "-W", "ignore", "-m", "lrlora", "chat", "embedded-decoder"]
    words += ["--min_new_tokens", "200", "--max_new_tokens", "200"]
    chat = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    try:
        until(ours, "\n> ")
        os.write(ours, b"Tell me a story of a dragon.\n")
        until(ours, "dragon.\r\n")
        assert select.select([ours], [], [], 60)[0]
        chat.send_signal(signal.SIGINT)
        until(ours, "> ")
        os.write(ours, b"/flip\n")
        until(ours, "no command /flip")
        os.write(ours, b"\x04")
        assert chat.wait(60) == 0
    finally:
        chat.kill()
        chat.wait()
        os.close(ours)
